# demo.sh and test.sh source this file at the repository's root. Afterwards `python` has the packages of $requirements (by default
# requirements.txt), in the versions of constraints.txt. It uses the active virtual environment, or makes `.venv`.

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

if [ -n "${VIRTUAL_ENV:-}" ]; then
    if ! [ -x "$VIRTUAL_ENV/bin/python" ]; then
        echo "VIRTUAL_ENV is $VIRTUAL_ENV, but there is no virtual environment. Run: unset VIRTUAL_ENV" >&2
        exit 1
    fi
    if ! supported python; then
        echo "The active virtual environment has $(python --version 2>&1). Deactivate it, or activate one with Python 3.10 to 3.13." >&2
        exit 1
    fi
else
    if ! supported .venv/bin/python || ! [ -x .venv/bin/pip ]; then
        for found in python3 python3.13 python3.12 python3.11 python3.10 ""; do
            if [ -n "$found" ] && supported "$found"; then break; fi
        done
        if [ -z "$found" ]; then
            echo "Found no Python 3.10 to 3.13 (python3 is $(python3 --version 2>&1)). Install Python 3.12, with its venv module, from your system's packages or https://www.python.org/downloads/ ." >&2
            exit 1
        fi
        "$found" -m venv --clear .venv
    fi
    . .venv/bin/activate
fi

# A copy of the lists that were installed last shows whether a list has changed since.
requirements=${requirements:-requirements.txt}
if ! cat requirements.txt requirements-dev.txt constraints.txt | cmp -s - "$VIRTUAL_ENV/installed-$requirements"; then
    echo "Installing $requirements into $VIRTUAL_ENV (some minutes the first time)."
    python -m pip install --quiet --requirement "$requirements" --constraint constraints.txt
    cat requirements.txt requirements-dev.txt constraints.txt > "$VIRTUAL_ENV/installed-$requirements"
fi
