-- Counts the limiters that are alive, detects whether Redis has lost data, and notes whether any
-- limiter pauses buckets.
--
-- KEYS[1]  the limiters: a sorted set by the time of the last heartbeat, in milliseconds; negative
--          until a limiter is established
-- KEYS[2]  the directory, a hash. Its field EPOCH is the epoch: eight bytes that change when data was
--          lost, then the count of all heartbeats
-- KEYS[3]  exists while a limiter that may pause buckets is alive, and for an hour after
-- KEYS[4]  if this limiter has an instance name: which limiter has that name
-- KEYS…    last, hashes of buckets that may be out of use; see acquire.lua
-- ARGV[1]  this limiter
-- ARGV[2]  "1" to deregister it
-- ARGV[3]  the epoch that this limiter used last, or nothing
-- ARGV[4]  the count that it used last
-- ARGV[5]  the epoch to begin, if there is none or data was lost
-- ARGV[6]  a limiter is alive if its last heartbeat is no older than this, in milliseconds
-- ARGV[7]  for this long after SILENCE, in milliseconds, a limiter that is not alive is missing
-- ARGV[8]  "first" until a heartbeat of this limiter was answered, "new" for some seconds, then
--          "established"
-- ARGV[9]  the server's time, in milliseconds, after which the sender has given up; or nothing
-- ARGV[10] "1" if this limiter may pause buckets
-- ARGV[11] how many hashes of buckets there are
-- Reply    the epoch, then doubles, little-endian: the count, how many limiters are alive, how many
--          are missing, 1 if any limiter pauses buckets, else 0, and the server's time in
--          milliseconds. If the sender has given up, only the time. If the limiter deregisters,
--          nothing.

local SILENCE, LONGEST, EPOCH_KEPT, EPOCH = 3000, 3600000, 604800000, '\255'

local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local limiters, directory, pauses_key, me = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local hashes = #KEYS - tonumber(ARGV[11])
local instance = hashes > 3 and KEYS[4]

if ARGV[2] == '1' then
  redis.call('ZREM', limiters, me)
  return ''
end

-- The server was frozen: the sender decides from memory by now.
if ARGV[9] ~= '' and now > tonumber(ARGV[9]) then return struct.pack('<d', now) end

local stored = redis.call('HMGET', directory, EPOCH)[1]
local epoch, count = ARGV[5], 0
if stored and #stored == 16 then
  local id = string.sub(stored, 1, 8)
  local heartbeats = struct.unpack('<d', stored, 9)
  -- A count that is out of range was not written by this script. A count that is lower than the
  -- sender's means that Redis was restored from an older copy.
  if not (heartbeats >= 0 and heartbeats < 9007199254740992) then
    epoch, count = ARGV[5], 0
  elseif id ~= ARGV[3] or heartbeats >= struct.unpack('<d', ARGV[4]) then
    epoch, count = id, heartbeats
  end
end
count = count + 1
redis.call('HSET', directory, EPOCH, epoch .. struct.pack('<d', count))
if redis.call('PTTL', directory) < EPOCH_KEPT then redis.call('PEXPIRE', directory, EPOCH_KEPT) end

if ARGV[10] == '1' then redis.call('SET', pauses_key, '1', 'PX', LONGEST) end
local pauses = redis.call('GET', pauses_key) and 1 or 0

if instance then
  local owner = redis.call('GET', instance)
  if owner == me or not owner or ARGV[8] == 'first' then
    -- The predecessor has ended, or sends another heartbeat within a second.
    if owner and owner ~= me then redis.call('ZREM', limiters, owner) end
    redis.call('SET', instance, me, 'PX', LONGEST)
  end
end

-- Heartbeats from the future: the server's clock was set back. Limiters that are alive send another.
redis.call('ZREMRANGEBYSCORE', limiters, now + 2000, '+inf')
redis.call('ZREMRANGEBYSCORE', limiters, '-inf', -now - 2000)
-- Silent limiters: new ones at once, others after the longest time that a share may be
-- reserved for them.
redis.call('ZREMRANGEBYSCORE', limiters, SILENCE - now, now - SILENCE - LONGEST)
redis.call('ZADD', limiters, ARGV[8] == 'established' and now or -now, me)
redis.call('PEXPIRE', limiters, SILENCE + LONGEST)
local since = now - ARGV[6]
local alive = redis.call('ZCOUNT', limiters, since, '+inf') + redis.call('ZCOUNT', limiters, '-inf', -since)
local missing = redis.call('ZCOUNT', limiters, now - SILENCE - ARGV[7], since - 1)
-- The buckets in a hash that expires within one period are full. To expire it would delay all users
-- of Redis for as long as it takes to free it.
for i = hashes + 1, #KEYS do
  local ms, left = 1000 * tonumber(string.match(KEYS[i], '(%d+)s:%d$')), redis.call('PTTL', KEYS[i])
  -- The expiry of the longest periods is shorter than four of them.
  if left >= 0 and left < ms and 4 * ms <= 9007199254740992 then redis.call('UNLINK', KEYS[i]) end
end

return epoch .. struct.pack('<ddddd', count, alive, missing, pauses, now)
