-- The twin of bucket.rs: the same law, in the same order of operations, where the buckets live.
--
-- KEYS     the buckets, each once; then the epoch, where ARGV[2] says which it must be
-- ARGV[1]  doubles, little-endian: capacity and tokens per microsecond of each key; then
--          commands until the end:
--            0 n max_wait m (index cost)*m   take, n times (n > 1 only where m = 1)
--            1 index tokens                  give back
--            2 index tokens                  charge
--            3 index                         full again
--            4 index                         look
--            5 index tokens                  no more than this
--            6 index                         empty it; where it is not full, stop here
--            7 index tokens wait big         charge, however deep the debt; the last of those who
--                                            were promised some of it, the largest of cost big,
--                                            has his turn after this wait
-- ARGV[2]  the epoch by which the caller knows these buckets
-- ARGV[3]  after an outage, the part of all processes that is back
-- Reply    nothing, where the epoch is another; else doubles: the server's time; per take: how
--          many go now, how many are granted, the wait of the last, when a refused one may ask
--          again, which of its buckets decides; then level and pool of each key. All times are
--          microseconds.
--
-- A value is level, at [, tail, big, pool], capacity, rate: the bracket while somebody sleeps
-- towards a promised turn; then the largest capacity and the slowest rate by which any process
-- has known this bucket since it was last full. A smaller quota's call must not let it expire
-- before the larger one's debt is paid, and can learn of that one only from the value.

local pack, unpack_d = struct.pack, struct.unpack
local ceil, floor, max, min = math.ceil, math.floor, math.max, math.min
local HUGE = 1.7e308

local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local argument, nkeys, back = ARGV[1], #KEYS, tonumber(ARGV[3] or 1)
local stored = redis.call('MGET', unpack(KEYS))
if (ARGV[2] or '') ~= '' then
  local epoch = stored[nkeys]
  if not epoch or string.sub(epoch, 1, 8) ~= ARGV[2] then return '' end
  nkeys = nkeys - 1
end
local cap, rate, level, at, tail, big, pool = {}, {}, {}, {}, {}, {}, {}
local most, slowest, changed = {}, {}, {}
local pos = 1

-- NaN fails both comparisons, infinities one.
local function finite(x) return x >= -HUGE and x <= HUGE end

for i = 1, nkeys do
  local c, r
  c, r, pos = unpack_d('<dd', argument, pos)
  cap[i], rate[i], most[i], slowest[i] = c, r, c, r
  tail[i], big[i], pool[i] = 0, 0, 0
  local value = stored[i]
  local size = value and #value or 0
  local l, a
  if size == 32 then
    l, a, most[i], slowest[i] = unpack_d('<dddd', value)
  elseif size == 56 then
    l, a, tail[i], big[i], pool[i], most[i], slowest[i] = unpack_d('<ddddddd', value)
  end
  if not (l and finite(l) and finite(a) and finite(tail[i]) and finite(big[i])
      and finite(pool[i]) and finite(most[i]) and slowest[i] > 0 and finite(slowest[i])) then
    -- Missing, of another type or length, or not numbers: full.
    l, a = c, now
    tail[i], big[i], pool[i], most[i], slowest[i] = 0, 0, 0, c, r
  end
  most[i], slowest[i] = max(most[i], c), min(slowest[i], r)

  -- visit
  if a > now + 1000000 then
    tail[i] = tail[i] - (a - now)
    a = now
    changed[i] = true
  end
  local n = max(a, now)
  local us = n - a
  if back < 1 then
    local promised = max(tail[i] - a, 0) * r * back
    local to_full = (1 - back) * c - promised - l
    local at_whole = min(us, max(to_full / (r * (1 - back)), 0))
    us = at_whole + (us - at_whole) * back
  end
  l = min(c, l + us * r)
  local p = min(pool[i], max(c - big[i] - max(l, 0), 0))
  if tail[i] <= n then
    l = min(c, l + p)
    tail[i], big[i], p = 0, 0, 0
  end
  level[i], at[i], pool[i] = l, n, p
end

local function whole(have, c)
  if have < c then return 0 end
  local k = floor(have / c)
  if k * c > have then return k - 1 end
  return k
end

local function quote(i, c)
  local need = min(c, cap[i])
  if level[i] >= need or pool[i] >= c then return 0 end
  return ceil((need - level[i]) / rate[i])
end

local function take(i, c, n, max_wait)
  if c <= 0 then return n, n, 0, 0 end
  -- Over the whole capacity: when the bucket is full, into debt.
  local over, ready = max(c - cap[i], 0), 0
  if over > 0 then
    if level[i] >= cap[i] then ready = 1 end
  else
    ready = min(whole(level[i], c), n)
  end
  level[i] = level[i] - ready * c
  local pooled = min(whole(pool[i], c), n - ready)
  pool[i] = pool[i] - pooled * c
  local at_once, last, retry_after = ready + pooled, 0, 0
  local granted, left = at_once, n - at_once
  if left > 0 then
    local l, r = level[i], rate[i]
    local later = min(max(floor((l + over + max_wait * r) / c), 0), left)
    if later > 0 and ceil((later * c - over - l) / r) > max_wait then
      later = later - 1
    elseif later < left and ceil(((later + 1) * c - over - l) / r) <= max_wait then
      later = later + 1
    end
    if later > 0 then
      granted = granted + later
      last = ceil((later * c - over - l) / r)
      level[i] = l - later * c
      tail[i] = max(tail[i], at[i] + last)
      big[i] = max(big[i], min(c, cap[i]))
    end
    if later < left then
      retry_after = max(ceil(((later + 1) * c - over - l) / r) - max_wait, 1)
    end
  end
  if granted > 0 then changed[i] = true end
  return at_once, granted, last, retry_after
end

local reply, size = { pack('<d', now) }, #argument
while pos <= size do
  local op
  op, pos = unpack_d('<d', argument, pos)
  if op == 0 then
    local n, max_wait, m
    n, max_wait, m, pos = unpack_d('<ddd', argument, pos)
    if m == 1 then
      local i, c
      i, c, pos = unpack_d('<dd', argument, pos)
      local at_once, granted, last, retry_after = take(i, c, n, max_wait)
      reply[#reply + 1] = pack('<ddddd', at_once, granted, last, retry_after, 1)
    else
      local index, cost, which, wait = {}, {}, 1, -1
      for j = 1, m do
        index[j], cost[j], pos = unpack_d('<dd', argument, pos)
        local quoted = quote(index[j], cost[j])
        if quoted > wait then which, wait = j, quoted end
      end
      if wait <= 0 then
        for j = 1, m do take(index[j], cost[j], 1, 0) end
        reply[#reply + 1] = pack('<ddddd', 1, 1, 0, 0, 1)
      elseif wait <= max_wait then
        take(index[which], cost[which], 1, max_wait)
        reply[#reply + 1] = pack('<ddddd', 0, 1, wait, 0, which)
      else
        reply[#reply + 1] = pack('<ddddd', 0, 0, 0, max(wait - max_wait, 1), which)
      end
    end
  elseif op == 4 then
    local _
    _, pos = unpack_d('<d', argument, pos)
  else
    local i, x
    i, pos = unpack_d('<d', argument, pos)
    if op == 6 then
      if level[i] < cap[i] then break end
      level[i], changed[i] = 0, true
    elseif op == 3 then
      level[i], tail[i], big[i], pool[i] = cap[i], 0, 0, 0
      changed[i] = true
    elseif op == 5 then
      x, pos = unpack_d('<d', argument, pos)
      level[i], pool[i] = min(level[i], x), min(pool[i], max(x, 0))
      changed[i] = true
    else
      changed[i] = true
      x, pos = unpack_d('<d', argument, pos)
      if op == 1 then
        if tail[i] <= at[i] then
          level[i] = min(cap[i], level[i] + x)
        else
          pool[i] = min(pool[i] + x, max(cap[i] - big[i] - max(level[i], 0), 0))
        end
      else
        local from_pool = min(pool[i], x)
        pool[i] = pool[i] - from_pool
        local floor_at = -HUGE
        if op == 2 then
          floor_at = -cap[i] - max(tail[i] - at[i], 0) * rate[i]
        else
          local wait, biggest
          wait, biggest, pos = unpack_d('<dd', argument, pos)
          if wait > 0 then
            tail[i], big[i] = max(tail[i], at[i] + wait), max(big[i], biggest)
          end
        end
        level[i] = min(level[i], max(level[i] - (x - from_pool), floor_at))
      end
    end
  end
end

for i = 1, nkeys do
  if changed[i] then
    local value = pack('<dd', level[i], at[i])
    if tail[i] > at[i] then
      value = value .. pack('<ddd', tail[i], big[i], pool[i])
    end
    value = value .. pack('<dd', most[i], slowest[i])
    -- Full is the same as absent, and the server's clock may be up to a second behind `at`.
    local us = at[i] - now + max((most[i] - level[i]) / slowest[i], tail[i] - at[i])
    -- It refills in part until all are back, or are no longer waited for.
    if back < 1 then us = us + 10000000 end
    local px = min(max(ceil(us / 1000), 1), 9007199254740992)
    redis.call('SET', KEYS[i], value, 'PX', px)
  end
  reply[#reply + 1] = pack('<dd', level[i], pool[i])
end
return table.concat(reply)
