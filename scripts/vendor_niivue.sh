#!/usr/bin/env bash
# Copy NiiVue, the volume viewer of the report page, from its npm package into scripts/report_page/viewer. Run this script only to
# change the version; it needs npm and a network. The result is in git.
[ -n "${BASH_VERSION:-}" ] || { echo "This script needs bash. Run: bash $0" >&2; exit 2; }
set -euo pipefail
cd "$(dirname "$0")/report_page/viewer"

# The bundled file contains these packages, which are direct and indirect dependencies. They are listed for their licences.
PACKAGES="
@niivue/niivue@0.69.0       sha512-YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA==
@lukeed/uuid@2.0.1          sha512-qC72D4+CDdjGqJvkFMMEAtancHUQ7/d/tAiHf64z8MopFDmcrtbcJuerDtFceuAfQJ2pDSfCKCtbqoGBNnwg0w==
@ungap/structured-clone@1.3.0 sha512-WmoN8qaIAo7WTYWbAZuG8PYEhn5fkz7dZrqTBZ7dtt//lL2Gwms1IcnQ5yHqjDfX8Ft5j4YzDM23f87zBfDe9g==
array-equal@1.0.2           sha512-gUHx76KtnhEgB3HOuFYiCm3FIdEs6ocM2asHvNTkfu/Y09qQVrrVVaOKENmS2KkSaGoxgXNqC+ZVtR/n0MOkSA==
fflate@0.8.2                sha512-cPJU47OaAoCbg0pBvzsgpTPhmhqI5eJjh/JIu8tPj5q+T7iLvW/JAYUqmE7KOB4R1ZyEhzBaIQpQpardBF5z8A==
gl-matrix@3.4.4             sha512-latSnyDNt/8zYUB6VIJ6PCh2jBjJX6gnDsoCZ7LyW7GkqrD51EWwa9qCoGixj8YqBtETQK/xY7OmpTF8xz1DdQ==
nifti-reader-js@0.8.0       sha512-iO1iIhQDfKniy+l/86HfOPte7So+SxBmBiMSiUB2VXU7z4hSewMTlE3h0fCgfzfXvMUa+ilzLTJ2ZHmtFw6EWw==
zarrita@0.5.4               sha512-i88iN2+HqIQ+uiCEWLfhjbYNXAJD7IrM4h3lFwFclfqEOOhxp10amRWtqmgN5jbuy3+h0LwdyLVVzk4y9rTLgg==
@zarrita/storage@0.1.3      sha512-ZyCMYN3LuCNtKxro9876r/KyHyXV+ie2Bhk1qYsJR4Jp+sAjoVRRNNSJPsJxk64ZgFFezayO5S2hCu88/1Odwg==
numcodecs@0.3.2             sha512-6YSPnmZgg0P87jnNhi3s+FVLOcIn3y+1CTIgUulA3IdASzK9fJM87sUFkpyA+be9GibGRaST2wCgkD+6U+fWKw==
"
BUNDLED=package/dist/niivue.umd.js

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp niivue.notices.txt "$folder/licences"  # notices that are missing in the packages

while read -r package integrity; do
    [ -n "$package" ] || continue
    file=$(npm pack --silent --pack-destination "$folder" "$package")
    found="sha512-$(openssl dgst -sha512 -binary "$folder/$file" | base64 | tr -d '\n')"
    if [ "$found" != "$integrity" ]; then
        echo "error: $package has changed: expected $integrity, got $found. No file was changed" >&2
        exit 1
    fi
    licence=$(tar -tzf "$folder/$file" | grep -iE '^package/licen[cs]e(\.md|\.txt)?$' || true)
    if [ -n "$licence" ]; then
        printf '\n\n==== %s ====\n\n' "$package" >> "$folder/licences"
        tar -xzOf "$folder/$file" "$licence" | tr -d '\r' >> "$folder/licences"
    fi
    case "$package" in @niivue/niivue@*) tar -xzOf "$folder/$file" "$BUNDLED" > "$folder/bundled" ;; esac
done <<< "$PACKAGES"

mv "$folder/bundled" niivue.umd.js
mv "$folder/licences" niivue.LICENSE.txt
openssl dgst -sha256 niivue.umd.js niivue.LICENSE.txt
