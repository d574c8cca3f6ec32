#!/bin/sh
# The command line in the worker's image, where the rooms are packages of a folder and nothing is installed.
exec python -c 'import sys; from flows.cli import main; sys.argv[0] = "deciduous"; main()' "$@"
