"""Where files live: object storage, local copies of it and copies into it, archives, and who writes into a folder.

Knows addresses, folders and bytes. Must never know what is in a file.
"""
