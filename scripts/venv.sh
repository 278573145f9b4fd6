# shellcheck shell=bash
# Finds this checkout's virtual environment and tells whether it is up to date.
#
# Read by the other scripts with `source`, after they have set `root`, the absolute path of the
# checkout. It stands in the way of every `scripts/vdisk`, so it starts no program and no subshell.
#
# An environment is up to date for a set of packages ("runtime", "test" or "fuzz") when its stamp holds the
# very text that stamp_text makes now: the checkout's path, the Python, and the whole content of
# each file that decides what is installed. No clock is compared, so a checkout of an older commit
# or a copied tree is seen for what it is.

# Where an environment may be: in the checkout, or, for a user who may not write there, in the
# user's cache under a name made from the checkout's path.
# shellcheck disable=SC2154 # `root` is the caller's.
venv_inside=$root/.venv
venv_cached=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/vdisk/${root//\//-}

# stamp_text SET PYTHON: puts into `stamp` what the stamp of an up-to-date environment says.
stamp_text() {
    local files=(requirements.txt requirements-build.txt pyproject.toml scripts/setup scripts/venv.sh)
    local file text
    case $1 in
        test) files+=(requirements-dev.txt) ;;
        fuzz) files+=(requirements-dev.txt requirements-fuzz.txt) ;;
    esac
    stamp="$2"$'\n'"$root"$'\n'
    for file in "${files[@]}"; do
        IFS= read -r -d '' text <"$root/$file" || true
        stamp+="[$file]"$'\n'"$text"
    done
}

# venv_ready SET DIRECTORY: whether that environment is there, complete and up to date.
venv_ready() {
    local file=$2/stamp-$1 found python stamp
    [[ -r $file ]] || return 1
    IFS= read -r -d '' found <"$file" || true
    python=${found%%$'\n'*}
    # A distribution upgrade takes the Python away from under its environments.
    [[ -x $python && -x $2/bin/python ]] || return 1
    stamp_text "$1" "$python"
    [[ $found == "$stamp" ]]
}

# find_venv SET: puts the up-to-date environment's path into `venv`; fails when there is none.
find_venv() {
    for venv in "$venv_inside" "$venv_cached"; do
        if venv_ready "$1" "$venv"; then return 0; fi
    done
    return 1
}
