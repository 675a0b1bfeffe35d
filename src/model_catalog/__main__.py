"""`python -m model_catalog` is `model-catalog`."""

from model_catalog.cli import run_program

if __name__ == "__main__":
    run_program()
