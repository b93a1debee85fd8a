#!/usr/bin/env bash
# Fetches the llm.c starter pack: GPT-2 weights, tokenizer and token files. Training works without any of it.
#
# A file arrives as NAME.part, is checked, flushed to disk and renamed, so what has the real name is whole.

set -u

upstream=https://huggingface.co/datasets/karpathy/llmc-starter-pack/resolve/main/

# name, folder, bytes, magic number (the first int32), sha256; '-' where it is not known. Versions 1 and 2 of
# the tokenizer have the same size; the digest is that of version 2. A digest is given only where the file was
# also rebuilt from its parts (the vocabulary, the text) and came out the same.
builtin_table='
gpt2_124M.bin              .                     497904640  20240326  -
gpt2_124M_bf16.bin         .                     248952832  20240326  -
gpt2_124M_debug_state.bin  .                     549369860  20240327  -
gpt2_tokenizer.bin         .                     372108     20240328  6f3abc21e444e4e8300e225f4e03da48ea121cf17e30f67009b8dad7a66c2f13
tiny_shakespeare_train.bin data/tinyshakespeare  611544     20240520  -
tiny_shakespeare_val.bin   data/tinyshakespeare  66560      20240520  fe99db720dc7c83e694806d4e047a952909411da1daccde4ccc2e55f40882a62
hellaswag_val.bin          data/hellaswag        -          20240522  -
'

usage() {
    cat <<'EOF'
usage: downloaddataset.sh [--only NAME]... [--dest DIR] [--list] [--help]

Fetches the llm.c starter pack (about 1.3 GB). Files already there are kept, unfinished ones are continued.

  --only NAME  fetch this file, or this group (tinyshakespeare, hellaswag); may be repeated
  --dest DIR   put the files below DIR instead of the folder of this script
  --list       show name, size, place and state of every file, and fetch nothing
  --help       show this text

environment:
  GPT2C_DATA_URL    base address of a mirror; file:///some/folder/ works too
  GPT2C_DATA_TABLE  a table that replaces the built-in one, for a mirror with other files; one file per line:
                    name, folder, bytes, magic number, sha256 ('-' for bytes or sha256 not known)

exit status: 0 all files are there, 1 a file could not be fetched, 2 wrong usage,
             4 a file is not what it should be (also when others could not be fetched)
EOF
}

complain() { echo "downloaddataset.sh: $*" >&2; }

refuse() {
    complain "$@"
    usage >&2
    exit 2
}

bytes_of() { echo $(($(wc -c <"$1"))); }

magic_of() {  # the first four bytes as a little-endian number, on any machine
    set -- $(od -An -tu1 -N4 "$1")
    echo $((${1:-0} | ${2:-0} << 8 | ${3:-0} << 16 | ${4:-0} << 24))
}

digest_of() {
    if command -v sha256sum >/dev/null; then
        sha256sum <"$1" | cut -d' ' -f1
    elif command -v shasum >/dev/null; then
        shasum -a 256 <"$1" | cut -d' ' -f1
    fi
}

fault_of() {  # file bytes magic sha256 -> what is wrong with the file; nothing if it is right
    [ -f "$1" ] || { echo "is not a file"; return; }
    local bytes magic digest
    bytes=$(bytes_of "$1")
    magic=$(magic_of "$1")
    if [ "$magic" != "$3" ]; then
        echo "begins with the number $magic instead of $3 (an error page?)"
    elif [ "$2" != - ] && [ "$bytes" -ne "$2" ]; then
        echo "has $bytes bytes instead of $2"
    elif [ "$4" != - ]; then
        digest=$(digest_of "$1")
        if [ -z "$digest" ]; then
            complain "found neither sha256sum nor shasum: a digest was not checked."
        elif [ "$digest" != "$4" ]; then
            echo "has the sha256 $digest instead of $4"
        fi
    fi
}

place_of() { if [ "$2" = . ]; then echo "$1"; else echo "$2/$1"; fi; }  # name folder

download() {  # url file -> prints the last HTTP status; continues what the file already holds
    local progress='--silent --show-error'
    [ -t 2 ] && progress=--progress-bar
    curl $progress --fail --location --globoff --connect-timeout 20 --speed-limit 1 --speed-time 60 \
        --continue-at - --write-out '%{http_code}' --output "$2" "$1"
}

fetch() {  # name folder bytes magic sha256 -> 0 it is there, 1 could not be fetched, 4 it is wrong
    local place path part fault http status
    place=$(place_of "$1" "$2")
    path=$dest/$place
    part=$path.part
    if [ -e "$path" ]; then
        fault=$(fault_of "$path" "$3" "$4" -)
        [ -z "$fault" ] && { echo "have   $place"; return 0; }
        complain "$place is there but $fault; it is left as it is: move it away and run this again."
        return 4
    fi
    if ! command -v curl >/dev/null; then
        complain "$place could not be fetched: curl is not installed."
        return 1
    fi
    mkdir -p "${path%/*}" || return 1

    if [ -e "$part" ]; then
        if [ "$(magic_of "$part")" != "$4" ] || { [ "$3" != - ] && [ "$(bytes_of "$part")" -ge "$3" ]; }; then
            echo "redo   $place: what was kept of it is no beginning of this file"
            rm -f "$part"
        else
            echo "resume $place at byte $(bytes_of "$part")"
        fi
    fi
    [ -e "$part" ] || echo "get    $place ($(size_text "$3"))"
    http=$(download "$base/$1" "$part")
    status=$?
    # 33: no ranges; 36: nothing at that offset. Then, as after HTTP 416, only the whole file will do.
    if [ "$http" = 416 ] || [ "$status" = 33 ] || [ "$status" = 36 ]; then
        echo "redo   $place: the server cannot continue it"
        rm -f "$part"
        download "$base/$1" "$part" >/dev/null
        status=$?
    fi
    if [ "$status" != 0 ]; then
        complain "$place could not be fetched from $base/$1 (curl ended with $status)."
        return 1
    fi

    fault=$(fault_of "$part" "$3" "$4" "$5")
    if [ -n "$fault" ]; then
        rm -f "$part"
        complain "$place came from $base/$1 but $fault; it was deleted."
        return 4
    fi
    sync "$part" 2>/dev/null  # a sync that takes no file is no reason to fail
    mv -f "$part" "$path" || return 1
    [ "$3" != - ] || echo "note   $place: its size is not known here; only its magic number was checked"
}

size_text() { if [ "$1" = - ]; then echo "size not known"; else echo "$1 bytes"; fi; }

state_of() {  # name folder bytes magic
    local path fault
    path=$dest/$(place_of "$1" "$2")
    if [ -e "$path" ]; then
        fault=$(fault_of "$path" "$3" "$4" -)
        if [ -z "$fault" ]; then echo present; else echo "wrong: $fault"; fi
    elif [ -f "$path.part" ]; then
        echo "unfinished: $(bytes_of "$path.part") bytes"
    else
        echo missing
    fi
}

selected() {  # name folder; a group is the last part of a folder
    [ -z "$only" ] || grep -qxF -e "$1" -e "${2##*/}" <<<"$only"
}

dest=$(dirname "$0")
base=${GPT2C_DATA_URL:-$upstream}
base=${base%/}
only=
list=no
while [ $# -gt 0 ]; do
    case $1 in
        --only | --dest)
            case ${2:--} in -*) refuse "$1 needs a value." ;; esac
            if [ "$1" = --only ]; then only+=$2$'\n'; else dest=${2%/}; fi
            shift 2 ;;
        --list) list=yes; shift ;;
        --help) usage; exit 0 ;;
        *) refuse "unknown argument $1." ;;
    esac
done
only=${only%$'\n'}

table=$builtin_table
if [ -n "${GPT2C_DATA_TABLE:-}" ]; then
    table=$(cat "$GPT2C_DATA_TABLE") || refuse "GPT2C_DATA_TABLE names a file that cannot be read."
fi
table=$(grep -v '^[[:blank:]]*$' <<<"$table")
bad_row=$(awk 'NF != 5 || $1 ~ "/" || $2 ~ "^/" || $3 !~ /^([0-9]+|-)$/ || $4 !~ /^[0-9]+$/ ||
    $5 !~ /^([0-9a-f]+|-)$/ || (length($5) != 64 && $5 != "-")' <<<"$table")
[ -z "$bad_row" ] || refuse "a line of the table is not 'name folder bytes magic sha256': $bad_row"

known=$(awk '{ print $1; n = split($2, part, "/"); if ($2 != ".") print part[n] }' <<<"$table" | sort -u)
unknown=$(grep -vxF "$known" <<<"$only") && [ -n "$unknown" ] &&
    refuse "--only does not know" $unknown"; known are:" $known

if [ $list = yes ]; then
    printf '%-28s %14s  %-46s %s\n' name bytes where state
    while read -r name folder bytes magic digest; do
        selected "$name" "$folder" || continue
        printf '%-28s %14s  %-46s %s\n' "$name" "${bytes/#-/not known}" "$(place_of "$name" "$folder")" \
            "$(state_of "$name" "$folder" "$bytes" "$magic")"
    done <<<"$table"
    exit 0
fi

trap 'echo; complain "stopped; running this again continues with what came so far."; exit 130' INT

missing=
wrong=
while read -r name folder bytes magic digest; do
    selected "$name" "$folder" || continue
    fetch "$name" "$folder" "$bytes" "$magic" "$digest"
    case $? in
        1) missing+=" $name" ;;
        4) wrong+=" $name" ;;
    esac
done <<<"$table"

if [ -n "$missing" ]; then
    complain "could not be fetched:$missing"
    cat >&2 <<'EOF'
  - Run this again to continue: what came so far is kept as NAME.part.
  - Without a connection, put the files by hand where --list shows them, or set GPT2C_DATA_URL to a mirror.
  - Training needs none of them: gpt2c trains offline on the data set that ships in data/.
EOF
fi
[ -z "$wrong" ] || { complain "not what they should be:$wrong"; exit 4; }
[ -z "$missing" ] || exit 1
echo "all files are there"
