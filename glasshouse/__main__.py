"""`python -m glasshouse`: the same as the installed command `glasshouse`."""

from glasshouse.command import main

if __name__ == "__main__":
    main()
