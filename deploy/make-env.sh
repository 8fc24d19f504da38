#!/bin/sh
# Write .env: .env.example with a fresh random secret in each empty place. Never touches an existing .env.
set -eu
cd "$(dirname "$0")/.."
if [ -e .env ]; then
  echo ".env is already there; remove it first if you want new secrets" >&2
  exit 1
fi
random_hex() { od -An -v -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

umask 077
while IFS= read -r line; do
  case $line in
    \#*) ;;
    S3_ACCESS_KEY=) line="${line}GK$(random_hex 12)" ;;
    WEBHOOK_SECRETS=) line="${line}whsec_$(random_hex 32)" ;; # hexadecimal digits are base64 too
    *=) line="$line$(random_hex 32)" ;;
  esac
  printf '%s\n' "$line"
done < .env.example > .env
echo "wrote .env"
