-- The common part of the scripts report.lua and expire.lua. The function New in store.go joins the source of each
-- script: first a line that defines keptFor and maxPerCall, then this file, then the script's own file.
-- KEYS: leases, connections of the gateway, number of its last report, digests, online (the number of connections
--       of each user), state and dirty (see change), connections that the gateway must close, connections in the parts
--       of a report so far, prefix of the keys of sessions, prefix of the keys of their rooms (the user's id follows
--       each prefix)
-- ARGV: gateway, then the arguments of the script itself
local leases, connections, newest, digests = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local online, state, dirty = KEYS[5], KEYS[6], KEYS[7]
local ended, telling, sessions, subscribed = KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local gateway = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2] -- µs
local function whole(n) return string.format('%.0f', n) end

-- Stores that a user is online (is = 1) or offline (0), with a number that is higher than all earlier ones of the user,
-- and marks the change as unpublished.
local function change(user, is)
  local before = redis.call('HGET', state, user)
  local last = before and tonumber(string.match(before, '^(%d+)')) or 0
  local n = whole(math.max(last + 1, now))
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

-- A connection is stored as "user hash session". An earlier release stored "user hash".
local function parts(kept) return string.match(kept, '^(%S+) (%d+) ?(%S*)$') end

-- The sessions of a user are one hash. An ended session is stored as "ended µs", any other session as "gateway since
-- seen connections token device". The word connections stands for a list of "connection/gateway", separated by commas,
-- the newest last. The list has two elements while a device changes networks, and is empty when the session has no
-- connection. The token may be empty too. The hash is deleted when none of its sessions was reported for keptFor ms. A
-- single session is deleted by prune.
local most = 50 -- the maximum number of sessions of a user, unless more of them have a connection

local function session(kept) return string.match(kept, '^(%S+) (%d+) (%d+) (%S*) (%S*) (.*)$') end

-- Stores a session. The parameter on is the list of its connections.
local function keep(user, id, where, since, on, token, device)
  local key = sessions .. user
  redis.call('HSET', key, id, table.concat({where, since, whole(now), table.concat(on, ','), token, device}, ' '))
  redis.call('PEXPIRE', key, whole(keptFor))
  redis.call('PEXPIRE', subscribed .. user, whole(keptFor))
end

-- Stores the rooms to which a connection of a session is subscribed, as "connection/gateway room room …". The parameter
-- rooms has three forms:
--   ''                the rooms are unknown or have not changed: do nothing
--   '= room room …'   the rooms of the connection. They do not replace the rooms of a newer connection of the session.
--   '? room room …'   rooms that the gateway restored from the session's earlier connections. They are stored only if
--                     no rooms are stored, under '-' instead of a connection, so that any other report replaces them.
-- The parameter on is the list of the session's connections, the newest last. The parameter one is the connection, as
-- "connection/gateway".
local function subscribe(user, id, on, one, rooms)
  if rooms == '' then return end
  local before = redis.call('HGET', subscribed .. user, id)
  if string.sub(rooms, 1, 1) == '?' then
    if before then return end
    one = '-'
  end
  local by = string.match(before or '', '^%S+')
  local passed = false
  for at in string.gmatch(on, '[^,]+') do
    if passed and at == by then return end
    passed = passed or at == one
  end
  redis.call('HSET', subscribed .. user, id, one .. string.sub(rooms, 2))
  redis.call('PEXPIRE', subscribed .. user, whole(keptFor))
end

-- The parameter on is a list of connections, and the parameter one is a connection. The function returns the list
-- without this connection, and whether this connection was the newest in the list.
local function without(on, one)
  local others, newest_one = {}, false
  for at in string.gmatch(on, '[^,]+') do
    newest_one = at == one
    if not newest_one then table.insert(others, at) end
  end
  return others, newest_one
end

-- Deletes old sessions of a user, before one more session is stored: the sessions that have no connection and were not
-- reported for keptFor ms. If at least 50 sessions are left, the function also deletes the session that has been
-- without a connection for the longest time.
local function prune(user)
  local key = sessions .. user
  local function forget(id)
    redis.call('HDEL', key, id)
    redis.call('HDEL', subscribed .. user, id)
  end
  local all, oldest, left = redis.call('HGETALL', key), nil, 0
  for i = 1, #all, 2 do
    local _, _, seen, on = session(all[i + 1])
    seen = tonumber(seen or string.match(all[i + 1], '^ended (%d+)$'))
    if on and on ~= '' then
      left = left + 1
    elseif seen < now - keptFor * 1000 then
      forget(all[i])
    else
      left = left + 1
      if not oldest or seen < oldest.seen then oldest = {id = all[i], seen = seen} end
    end
  end
  if left >= most and oldest then forget(oldest.id) end
end

-- Stores that a session has an open connection. If the connection is stored already, its token is stored only if the
-- session has no newer connection. If the user has ended the session, nothing is stored for the session, and the
-- connection is added to the connections that the gateway must close.
local function begin(user, id, connection, since, token, device, rooms)
  local one = connection .. '/' .. gateway
  local kept = redis.call('HGET', sessions .. user, id)
  if not kept then
    prune(user)
    keep(user, id, gateway, since, {one}, token, device)
    subscribe(user, id, one, one, rooms)
    return
  end
  local where, begun, _, on, last, before = session(kept)
  if not where then
    redis.call('SADD', ended, connection)
    return
  end
  if token == '' then token = last end
  local others, is_newest = without(on, one)
  if is_newest then
    table.insert(others, one)
    keep(user, id, where, begun, others, token, device)
  elseif not string.find(',' .. on .. ',', ',' .. one .. ',', 1, true) then
    table.insert(others, one)
    keep(user, id, gateway, begun, others, token, device)
    on = on == '' and one or on .. ',' .. one
  end
  subscribe(user, id, on, one, rooms)
end

-- Stores that a connection of a session has closed. If the session has a newer connection, the stored token is kept.
local function over(user, id, connection, token, rooms)
  redis.call('SREM', ended, connection)
  if id == '' then return end
  local one = connection .. '/' .. gateway
  local where, since, _, on, last, device = session(redis.call('HGET', sessions .. user, id) or '')
  if not where then return end
  local others, is_newest = without(on, one)
  if not is_newest or token == '' then token = last end
  keep(user, id, where, since, others, token, device)
  subscribe(user, id, on, one, rooms)
end

-- Stores the session of a connection that was opened and closed between two reports. If the session is stored already,
-- its other connections count as newer.
local function passed(user, id, connection, since, token, device, rooms)
  if id == '' then return end
  local one = connection .. '/' .. gateway
  local kept = redis.call('HGET', sessions .. user, id)
  if not kept then
    prune(user)
    keep(user, id, gateway, since, {}, token, device)
    subscribe(user, id, '', one, rooms)
    return
  end
  local where, _, _, on = session(kept)
  if where then subscribe(user, id, one .. ',' .. on, one, rooms) end
end
