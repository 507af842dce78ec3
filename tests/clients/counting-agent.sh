# An agent that counts aloud, so that a check knows what it must have said: each number once, in order.
i=0
while [ "$i" -lt 250 ]; do
  i=$((i + 1))
  printf '{"event":"agent","stream":"assistant","data":{"delta":"%s "}}\n' "$i"
  sleep 0.02
done
