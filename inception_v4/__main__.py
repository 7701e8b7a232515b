"""`python -m inception_v4` and `torchrun -m inception_v4`."""

from inception_v4.cli.main import program

if __name__ == "__main__":
    program()
