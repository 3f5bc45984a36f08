-- Applies one report of a gateway. Everything that it changes, and the numbers that it gives, are of one moment.
-- KEYS: leases, gateway's connections, gateway's number, digests, online, state, dirty
-- ARGV: gateway, number, lease in ms, all, ends, count, digest,
--       then per change: connection, user, gone, hash
-- Answers "ok", "again" (what is known differs), or "old" (a newer report was seen).
local leases, connections, newest, digests = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local online, state, dirty = KEYS[5], KEYS[6], KEYS[7]
local gateway, number, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local all, ends = ARGV[4] == '1', ARGV[5] == '1'
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function change(user, is)
  local before = redis.call('HGET', state, user)
  local last = before and tonumber(string.match(before, '^(%d+)')) or 0
  local n = string.format('%.0f', math.max(last + 1, now))
  redis.call('HSET', state, user, n .. ':' .. is)
  redis.call('HSET', dirty, user, n)
end

local function join(user)
  if redis.call('HINCRBY', online, user, 1) == 1 then change(user, 1) end
end

local function leave(user)
  if redis.call('HINCRBY', online, user, -1) <= 0 then
    redis.call('HDEL', online, user)
    change(user, 0)
  end
end

-- What is kept per connection is "user hash"; count and digest of all of them are kept beside, in "count:digest".
local count, digest = string.match(redis.call('HGET', digests, gateway) or '0:0', '^(%d+):(%d+)$')
count, digest = tonumber(count), tonumber(digest)

local function add(connection, user, hash)
  redis.call('HSET', connections, connection, user .. ' ' .. hash)
  count, digest = count + 1, (digest + hash) % 4294967296
  join(user)
end

local function drop(connection, kept)
  local user, hash = string.match(kept, '^(%S+) (%d+)$')
  redis.call('HDEL', connections, connection)
  count, digest = count - 1, (digest - hash) % 4294967296
  leave(user)
end

if number <= tonumber(redis.call('GET', newest) or '0') then return 'old' end
-- Longer than a report can be on its way, so that one which is late does not bring back a gateway that has ended.
local function heard() redis.call('SET', newest, ARGV[2], 'PX', string.format('%.0f', lease * 20)) end

if ends then
  local kept = redis.call('HGETALL', connections)
  for i = 1, #kept, 2 do drop(kept[i], kept[i + 1]) end
  redis.call('ZREM', leases, gateway)
  redis.call('HDEL', digests, gateway)
  heard()
  return 'ok'
end

if not all and not redis.call('ZSCORE', leases, gateway) then
  -- The gateway tells all of its connections next, but those that are gone never again. Where nothing is known of a
  -- user (Redis was emptied) somebody may still be shown that they are here.
  for i = 8, #ARGV, 4 do
    local user = ARGV[i + 1]
    if ARGV[i + 2] == '1' and redis.call('HEXISTS', state, user) == 0 then change(user, 0) end
  end
  return 'again'
end
heard()
redis.call('ZADD', leases, string.format('%.0f', now + lease * 1000), gateway)

local told = {}
for i = 8, #ARGV, 4 do
  local connection, user, gone = ARGV[i], ARGV[i + 1], ARGV[i + 2] == '1'
  local kept = redis.call('HGET', connections, connection)
  if gone then
    if kept then drop(connection, kept) end
  else
    told[connection] = true
    if kept and kept ~= user .. ' ' .. ARGV[i + 3] then
      drop(connection, kept)
      kept = false
    end
    if not kept then add(connection, user, ARGV[i + 3]) end
  end
end
if all then
  local kept = redis.call('HGETALL', connections)
  for i = 1, #kept, 2 do
    if not told[kept[i]] then drop(kept[i], kept[i + 1]) end
  end
end
redis.call('HSET', digests, gateway, string.format('%.0f:%.0f', count, digest))
if count ~= tonumber(ARGV[6]) or digest ~= tonumber(ARGV[7]) then return 'again' end
return 'ok'
