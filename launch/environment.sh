# shellcheck shell=bash
# Sourced by the other scripts: goes to the repository's root and makes .venv there with the package
# in it. `prepare_environment EXTRAS` takes the extras to install, for example "test", or nothing.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# Prints the first of some interpreters that is there and new enough; PYTHON comes before them.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" "$@" python3; do
    if [[ -n $candidate ]] && "$candidate" -c \
      'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "no Python of at least 3.11 with venv found; name one with PYTHON=…" >&2
  return 1
}

prepare_environment() {
  local extras=${1:-} python stamp
  if [[ ! -x .venv/bin/python ]]; then
    python=$(find_python python3.{14,13,12,11}) || return
    "$python" -m venv .venv || return
  fi
  # Installed again only when what is asked for has changed, so a second call needs no network.
  stamp=.venv/installed-${extras:-core}
  if ! cat requirements.txt setup.py | cmp -s - "$stamp"; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      --editable ".${extras:+[$extras]}" || return
    cat requirements.txt setup.py >"$stamp"
  fi
}

# Makes .venv-lowest with the lowest versions of all direct dependencies.
prepare_lowest() {
  local extras=${1:-} python stamp=.venv-lowest/installed
  if [[ ! -x .venv-lowest/bin/python ]]; then
    # The lowest versions have wheels for the oldest Python.
    python=$(find_python python3.{11,12}) || return
    "$python" -m venv .venv-lowest || return
  fi
  if ! cat requirements.txt setup.py | cmp -s - "$stamp"; then
    # uv alone can choose the lowest versions.
    .venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv || return
    .venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python \
      --resolution lowest-direct --editable ".${extras:+[$extras]}" || return
    cat requirements.txt setup.py >"$stamp"
  fi
}
