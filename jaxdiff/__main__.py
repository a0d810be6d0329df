"""`python -m jaxdiff` is `jaxdiff`."""

from jaxdiff.cli import main

if __name__ == "__main__":
    main()
