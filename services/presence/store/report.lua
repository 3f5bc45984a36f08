-- Applies one report of a gateway. Everything that it changes, and the numbers that it gives, are of one moment.
-- A report in parts is told to have more but for its last one; only then is it held against what is known.
-- ARGV: gateway, number, lease in ms, all, ends, count, digest, part, more,
--       then per change: connection, user, gone, hash, session, since in µs, token, device, rooms (as subscribe takes them)
-- Answers "ok", "again" (what is known differs), or "old" (a newer report was seen), then the connections to end.
local number, lease = tonumber(ARGV[2]), tonumber(ARGV[3])
local all, ends = ARGV[4] == '1', ARGV[5] == '1'
local part, more = tonumber(ARGV[8]), ARGV[9] == '1'
local first, each = 10, 9

-- Count and digest of all connections are kept in "count:digest".
local count, digest = string.match(redis.call('HGET', digests, gateway) or '0:0', '^(%d+):(%d+)$')
count, digest = tonumber(count), tonumber(digest)

local function answer(said)
  local told = redis.call('SMEMBERS', ended)
  table.insert(told, 1, said)
  return told
end

local function compared()
  if more then return answer('ok') end
  if count ~= tonumber(ARGV[6]) or digest ~= tonumber(ARGV[7]) then return answer('again') end
  return answer('ok')
end

local function add(connection, user, hash, id)
  redis.call('HSET', connections, connection, user .. ' ' .. hash .. ' ' .. id)
  count, digest = count + 1, (digest + hash) % 4294967296
  join(user)
end

local function drop(connection, kept, token, rooms)
  local user, hash, id = parts(kept)
  redis.call('HDEL', connections, connection)
  count, digest = count - 1, (digest - hash) % 4294967296
  leave(user)
  over(user, id, connection, token, rooms)
end

local last = tonumber(redis.call('GET', newest) or '0')
if number < last then return {'old'} end
if number == last and not ends then return compared() end -- the answer was lost
-- Longer than a report can be on its way, so that one which is late does not bring back a gateway that has ended.
local function heard() redis.call('SET', newest, ARGV[2], 'PX', whole(lease * 20)) end

if ends then
  for i = first, #ARGV, each do
    local kept = redis.call('HGET', connections, ARGV[i])
    if kept then
      drop(ARGV[i], kept, ARGV[i + 6], ARGV[i + 8])
    else
      passed(ARGV[i + 1], ARGV[i + 4], ARGV[i], ARGV[i + 5], ARGV[i + 6], ARGV[i + 7], ARGV[i + 8])
    end
  end
  redis.call('HSET', digests, gateway, whole(math.max(count, 0)) .. ':' .. whole(digest))
  -- The lease has run out as of now; expire.lua takes the other connections, some at a time.
  redis.call('ZADD', leases, 0, gateway)
  heard()
  return {'ok'}
end

if not all and not redis.call('ZSCORE', leases, gateway) then
  -- The gateway tells all of its connections next, but those that are gone never again. Where nothing is known of a
  -- user (Redis was emptied) somebody may still be shown that they are here.
  for i = first, #ARGV, each do
    local user = ARGV[i + 1]
    if ARGV[i + 2] == '1' and redis.call('HEXISTS', state, user) == 0 then change(user, 0) end
  end
  return {'again'}
end
heard()
redis.call('ZADD', leases, whole(now + lease * 1000), gateway)

if all and part == 0 then redis.call('DEL', telling) end
for i = first, #ARGV, each do
  local connection, user, gone, hash, id = ARGV[i], ARGV[i + 1], ARGV[i + 2] == '1', ARGV[i + 3], ARGV[i + 4]
  local since, token, device, rooms = ARGV[i + 5], ARGV[i + 6], ARGV[i + 7], ARGV[i + 8]
  local kept = redis.call('HGET', connections, connection)
  if gone then
    if kept then
      drop(connection, kept, token, rooms)
    else
      passed(user, id, connection, since, token, device, rooms)
    end
  else
    if all then redis.call('SADD', telling, connection) end
    if kept and kept ~= user .. ' ' .. hash .. ' ' .. id then
      drop(connection, kept, '', '')
      kept = false
    end
    if not kept then add(connection, user, hash, id) end
    if id ~= '' then begin(user, id, connection, since, token, device, rooms) end
  end
end
if all and not more then
  -- More than so many are not dropped at a time: then count and digest differ, and the gateway tells all again.
  local known, dropped = redis.call('HKEYS', connections), 0
  for i = 1, #known, maxPerCall do
    local told = redis.call('SMISMEMBER', telling, unpack(known, i, math.min(i + maxPerCall - 1, #known)))
    for j = 1, #told do
      if told[j] == 0 and dropped < 4 * maxPerCall then
        local connection = known[i + j - 1]
        drop(connection, redis.call('HGET', connections, connection), '', '')
        dropped = dropped + 1
      end
    end
  end
  redis.call('DEL', telling)
end
redis.call('HSET', digests, gateway, whole(count) .. ':' .. whole(digest))
return compared()
