"""The command without its script: ``python -m mint_compress``."""

from mint_compress.cli.app import PROGRAM, main

if __name__ == "__main__":
    main(prog_name=PROGRAM)
