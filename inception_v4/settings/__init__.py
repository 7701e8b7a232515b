"""What a run can be told: the schema, recipes, defaults for newcomers, and other projects' spellings.

Knows names, types and ranges. Must never know torch, a device or the content of a data set.
"""
