# Waits for the end of the test process $1, whose pipe is our standard input, then stops the server in $2 if nobody
# else uses it. The pause lets the next of several test programs take over instead of starting anew.
trap '' INT TERM HUP
cat >/dev/null
rm -f "$2/holders/$1"
sleep 1
for holder in "$2"/holders/*; do
    [ -e "$holder" ] || continue
    if kill -0 "${holder##*/}" 2>/dev/null; then exit 0; fi
    rm -f "$holder"
done
base=$2/postgres
if [ -f "$2/cluster-path" ]; then base=$(cat "$2/cluster-path"); fi
if read -r pid <"$base/data/postmaster.pid"; then kill -INT "$pid"; fi
