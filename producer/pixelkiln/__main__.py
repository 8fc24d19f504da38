"""`python -m pixelkiln` is the command `pixelkiln`."""

from pixelkiln.cli import main

if __name__ == "__main__":
    main(prog_name="pixelkiln")
