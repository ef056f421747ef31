# sh gobuild.sh PROGRAM PACKAGE TAGS [VARIABLE=VALUE...]: builds a package, with variables of its stamped, from the module in the
# working directory at what its go.sum says. Puts the licences of all that is linked into it below /usr/share/doc.
set -eu
program=$1 package=$2 tags=$3
shift 3
stamps="-s -w"
for stamp; do stamps="$stamps -X $stamp"; done
go build -tags "$tags" -ldflags "$stamps" -o "/usr/local/bin/$program" "$package"

texts=/usr/share/doc/$program
mkdir -p "$texts/go"
cp "$(go env GOROOT)/LICENSE" "$texts/go"
modules=$(go list -deps -tags "$tags" -f '{{with .Module}}{{.Dir}}{{end}}' "$package" | sort -u)
cd "$GOMODCACHE"
for module in $modules; do
    case $module in "$GOMODCACHE"/*) find "${module#"$GOMODCACHE"/}" -maxdepth 1 -type f \
        \( -iname 'licen[cs]e*' -o -iname 'notice*' -o -iname 'copying*' \) -exec cp --parents {} "$texts" ';' ;; esac
done
rm -rf "$GOCACHE" # gigabytes; modules stay for the next program, this only where a build was interrupted
