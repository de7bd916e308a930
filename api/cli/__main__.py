"""`python -m api.cli` is `ragwright`."""

from api.cli import main

if __name__ == "__main__":
    main()
