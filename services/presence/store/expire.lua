-- Ends one gateway whose lease has run out, by Redis' own clock, some of its connections at a time.
-- Answers 0 when its lease has not run out (any more), 1 when it was ended, 2 when connections of it are left.
local ends = redis.call('ZSCORE', leases, gateway)
if not ends or tonumber(ends) > now then return 0 end

-- Count and digest follow, so that a gateway that is heard of after all is found to have other connections.
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
