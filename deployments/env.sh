#!/bin/sh
# Generates the secrets that docker-compose.yml requires, and writes them into .env, which only its owner can read.
# Secrets that the file already has are not changed; missing ones are added.
#
#   sh deployments/env.sh [FILE]    FILE: by default .env at the root of the repository
set -eu
umask 077
file=${1:-$(dirname "$0")/../.env}
names="POSTGRES_PASSWORD REDIS_PASSWORD JWT_SECRET"

random() {
	value=$(od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n')
	if [ ${#value} -ne 64 ]; then
		echo "env: /dev/urandom returns no random bytes" >&2
		return 1
	fi
	printf '%s' "$value"
}

# Create the file if it is missing. If another run creates the file at the same time, this run uses that file: because
# of noclobber (set -C), the shell does not overwrite it.
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
	echo "env: $file has all secrets, nothing was changed"
	exit 0
fi
# The last line may lack its newline, if the file was edited by hand.
if [ -s "$file" ] && [ -n "$(tail -c 1 "$file")" ]; then
	lines="
$lines"
fi
printf '%s' "$lines" >>"$file"
echo "env: wrote$missing to $file"
