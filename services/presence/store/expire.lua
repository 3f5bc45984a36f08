-- Ends one gateway whose lease has run out, by Redis' own clock.
-- KEYS: leases, gateway's connections, gateway's number, digests, online, state, dirty
-- ARGV: gateway
-- Answers 1 when it was ended.
local leases, connections, digests = KEYS[1], KEYS[2], KEYS[4]
local online, state, dirty = KEYS[5], KEYS[6], KEYS[7]
local gateway = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local ends = redis.call('ZSCORE', leases, gateway)
if not ends or tonumber(ends) > now then return 0 end

local kept = redis.call('HGETALL', connections)
for i = 1, #kept, 2 do
  local user = string.match(kept[i + 1], '^(%S+)')
  if redis.call('HINCRBY', online, user, -1) <= 0 then
    redis.call('HDEL', online, user)
    local before = redis.call('HGET', state, user)
    local last = before and tonumber(string.match(before, '^(%d+)')) or 0
    local n = string.format('%.0f', math.max(last + 1, now))
    redis.call('HSET', state, user, n .. ':0')
    redis.call('HSET', dirty, user, n)
  end
end
redis.call('DEL', connections)
redis.call('ZREM', leases, gateway)
redis.call('HDEL', digests, gateway)
return 1
