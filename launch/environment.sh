# shellcheck shell=bash
# Sourced by the other scripts: goes to the repository's root and makes .venv there with the package
# in it. `prepare_environment EXTRAS` takes the extras to install, for example "test", or nothing.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.14 python3.13 python3.12 python3.11 python3; do
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
    python=$(find_python) || return
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
