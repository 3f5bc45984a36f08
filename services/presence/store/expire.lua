-- Ends one gateway whose lease has run out, by Redis' own clock.
-- Answers 1 when it was ended.
local ends = redis.call('ZSCORE', leases, gateway)
if not ends or tonumber(ends) > now then return 0 end

local kept = redis.call('HGETALL', connections)
for i = 1, #kept, 2 do
  local user, _, id = parts(kept[i + 1])
  leave(user)
  over(user, id, kept[i], '')
end
redis.call('DEL', connections, ended, telling)
redis.call('ZREM', leases, gateway)
redis.call('HDEL', digests, gateway)
return 1
