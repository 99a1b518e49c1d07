-- The smallest script that enforces a limit by the server's clock: GCRA in one string.
-- KEYS[1] bucket; ARGV: microseconds per token, microseconds per capacity
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local tat = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now) + ARGV[1]
local wait = tat - now - ARGV[2]
if wait > 0 then return math.ceil(wait) end
redis.call('SET', KEYS[1], tat, 'PX', math.ceil((tat - now) / 1000))
return 0
