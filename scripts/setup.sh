# Sourced by demo.sh and test.sh at the repository's root: afterwards `python` has everything in requirements.txt.
# It uses the active virtual environment, or makes `.venv` with a Python between 3.10 and 3.12.

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

if [ -n "${VIRTUAL_ENV:-}" ]; then
    if ! supported python; then
        echo "The active virtual environment has $(python --version 2>&1). Deactivate it, or activate one with Python 3.10, 3.11 or 3.12." >&2
        exit 1
    fi
else
    if ! supported .venv/bin/python || ! [ -x .venv/bin/pip ]; then
        for found in python3 python3.12 python3.11 python3.10 ""; do
            if [ -n "$found" ] && supported "$found"; then break; fi
        done
        if [ -z "$found" ]; then
            echo "Found no Python 3.10, 3.11 or 3.12 (python3 is $(python3 --version 2>&1)). Install Python 3.12, with its venv module, from your system's packages or https://www.python.org/downloads/ ." >&2
            exit 1
        fi
        "$found" -m venv --clear .venv
    fi
    . .venv/bin/activate
fi

# A copy of the file that was installed last tells whether it has changed.
if ! cmp -s requirements.txt "$VIRTUAL_ENV/installed-requirements.txt"; then
    echo "Installing requirements.txt into $VIRTUAL_ENV (some minutes the first time)."
    python -m pip install --quiet --requirement requirements.txt
    cp requirements.txt "$VIRTUAL_ENV/installed-requirements.txt"
fi
