-- Applies one report of a gateway atomically. In a report that consists of several parts, the argument more is 1 in
-- every part but the last. Count and digest are compared only after the last part.
-- ARGV: gateway, number, lease in ms, all, ends, count, digest, part, more,
--       then for each change: connection, user, gone, hash, session, since in µs, token, device, rooms (see subscribe
--       in state.lua)
-- Returns "ok", "again" (the gateway has no lease, or count or digest differ: it must report all connections), or "old"
-- (a newer report was applied before). If count and digest were compared, or more parts follow, the connections that
-- the gateway must close are also returned.
local number, lease = tonumber(ARGV[2]), tonumber(ARGV[3])
local all, ends = ARGV[4] == '1', ARGV[5] == '1'
local part, more = tonumber(ARGV[8]), ARGV[9] == '1'
local first, each = 10, 9

-- Count and digest of a gateway's connections are stored as "count:digest".
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
if number == last and not ends then return compared() end -- sent again, because the answer was lost
-- Stores the number of the report for the duration of 20 leases. If an older report arrives within this time, it is
-- refused as old, so that it does not bring back a gateway that has ended. No older report is expected to arrive later.
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
  -- Let the lease expire at once. The caller then runs expire.lua, which ends the other connections.
  redis.call('ZADD', leases, 0, gateway)
  heard()
  return {'ok'}
end

if not all and not redis.call('ZSCORE', leases, gateway) then
  -- The gateway reports all its open connections next, but never again the closed ones. If a user of a closed
  -- connection has no state, Redis was emptied, and clients may still show the user as online. Publish that the user is
  -- offline.
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
  -- Drop the connections that the report does not contain, at most 4 * maxPerCall in one call. If there are more, count
  -- and digest differ, and the gateway reports all its connections again.
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
