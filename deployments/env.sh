#!/bin/sh
# Writes the secrets that docker-compose.yml asks for into .env, at random, readable by their owner alone. What is there
# already is never changed: run again, it adds what is missing.
#
#   sh deployments/env.sh [FILE]    FILE: .env at the root of the repository
set -eu
umask 077
file=${1:-$(dirname "$0")/../.env}
names="POSTGRES_PASSWORD REDIS_PASSWORD JWT_SECRET"

random() {
	value=$(od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n')
	if [ ${#value} -ne 64 ]; then
		echo "env: /dev/urandom gives nothing" >&2
		return 1
	fi
	printf '%s' "$value"
}

# Another run that makes the file at the same time wins: noclobber refuses a file that is there.
if [ ! -e "$file" ] && ! (set -C; : >"$file") 2>/dev/null && [ ! -e "$file" ]; then
	echo "env: $file cannot be written" >&2
	exit 1
fi
if [ ! -f "$file" ]; then
	echo "env: $file is not a file" >&2
	exit 1
fi
chmod 600 "$file"

missing=""
for name in $names; do
	if grep -Eq "^[[:space:]]*(export[[:space:]]+)?$name[[:space:]]*=[[:space:]]*[^[:space:]]" "$file"; then
		continue
	elif grep -Eq "^[[:space:]]*(export[[:space:]]+)?$name[[:space:]]*=" "$file"; then
		echo "env: $name is empty in $file: remove that line, and run this again" >&2
		exit 1
	fi
	missing="$missing $name"
done

lines=""
for name in $missing; do
	value=$(random)
	lines="$lines$name=$value
"
done
if [ -z "$lines" ]; then
	echo "env: $file has everything, nothing was changed"
	exit 0
fi
# Who edited the file by hand may have left its last line open.
if [ -s "$file" ] && [ -n "$(tail -c 1 "$file")" ]; then
	lines="
$lines"
fi
printf '%s' "$lines" >>"$file"
echo "env: wrote$missing to $file"
