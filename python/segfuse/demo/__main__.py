import sys

from segfuse.demo import main

if __name__ == "__main__":
    sys.exit(main())
