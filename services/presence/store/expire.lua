-- Ends a gateway whose lease has expired according to the clock of Redis. Each call ends at most maxPerCall
-- connections. Returns 0 if the gateway has no lease or its lease has not expired, 1 if the gateway has ended, and 2 if
-- it still has connections.
local ends = redis.call('ZSCORE', leases, gateway)
if not ends or tonumber(ends) > now then return 0 end

-- Besides the connections, update the stored count and digest. If the gateway reports again, its own count and digest
-- differ from these, so it must report all its connections.
local count, digest = string.match(redis.call('HGET', digests, gateway) or '0:0', '^(%d+):(%d+)$')
count, digest = tonumber(count), tonumber(digest)
local kept = redis.call('HRANDFIELD', connections, maxPerCall, 'WITHVALUES')
for i = 1, #kept, 2 do
  local user, hash, id = parts(kept[i + 1])
  redis.call('HDEL', connections, kept[i])
  count, digest = count - 1, (digest - hash) % 4294967296
  leave(user)
  over(user, id, kept[i], '', '')
end
if redis.call('HLEN', connections) > 0 then
  redis.call('HSET', digests, gateway, whole(math.max(count, 0)) .. ':' .. whole(digest))
  return 2
end
redis.call('DEL', ended, telling)
redis.call('ZREM', leases, gateway)
redis.call('HDEL', digests, gateway)
return 1
