-- Decides requests and applies operations to token buckets. The model is that of bucket/mod.rs: the
-- same operations in the same order, so that both agree to the last bit.
--
-- All times are microseconds, all amounts are tokens, and all numbers are little-endian doubles.
--
-- KEYS     1: the directory, a hash: the epoch, and the classes of names, see below. Then for each
--          class of this call its two hashes.
-- ARGV[1]  Runs of adjacent buckets with equal parameters, each of nine numbers: how many buckets;
--          the length of the name, with which each of their fields begins; the index in KEYS of
--          their class; its period; capacity; tokens per microsecond; then the first request for
--          each of them, which takes from no other bucket: cost, n (how many callers; 0: there is
--          none), max_wait.
--          The rest is steps, which most calls do not have; each is a code, a bucket (counted from
--          1) and further numbers:
--            0 n max_wait m (bucket cost)*m
--                                      n requests; each takes from all m buckets or from none
--                                      (n > 1 only if m = 1)
--            1 bucket tokens           give back
--            2 bucket tokens           charge, down to a debt of the capacity and what is reserved
--            3 bucket                  reset: full, not paused
--            4 bucket                  inspect: change nothing
--            5 bucket tokens           cap the level
--            6 bucket                  empty it if it is full; otherwise skip the rest of the call
--            7 bucket tokens wait largest
--                                      write back: charge without a limit to the debt; `wait` is
--                                      the time until the last reservation among these tokens is
--                                      due, `largest` is their largest cost
--            8 bucket tokens           lease: take up to this many from the upper half, unless
--                                      reservations are outstanding
--            9 bucket us               pause: grant nothing for so long
--            10 bucket tokens due from undo a reservation: its tokens refill from `from` and are
--                                      due at `due`
-- ARGV[2]  the epoch that the caller has read, or nothing
-- ARGV[3]  after an outage, the fraction of peers that have recovered, as text
-- ARGV[4]… the field of each bucket, each once
--
-- Reply    empty if the epoch is another one, and then nothing was changed. Otherwise: the server's
--          time, from which waits count, or 0 if the time of a bucket is ahead of it. Then for each
--          bucket its level without gaps, if all callers of its first request are granted at once,
--          nothing is returned, and it is not paused; infinity otherwise. Then for each infinity:
--          of the first request, how many callers are granted at once, how many in all, the wait
--          of the last one, and when a rejected one may retry; the level without gaps; and the
--          returned tokens, or, if the bucket is paused, the rest of the pause as a negative
--          number. Then for each step of code 0 or 8: the first four of these (8: tokens instead of
--          callers), and which of its buckets decided (counted from 1).
--
-- Value    level; at, the time of that level; the largest capacity and the slowest rate with which
--          any caller has used the bucket since it was last full. While reservations are
--          outstanding, also when the last one is due, their largest cost, and the tokens returned
--          meanwhile. While the bucket is paused or has gaps, also until when it is paused, and the
--          rate by which the level counts the rest of the pause. Then each gap: a cancelled
--          reservation with others behind it (from, due, tokens).
--
-- Hashes   A full bucket equals an absent one, so values are forgotten by the hash, when all of
--          them are full. Buckets that are full after at most one period are in the class of that period
--          (16 s, and each power of two above). A class has two hashes, for this period and for the
--          one before. Values are written to the first and read from both, so each is found for at
--          least one period. Then its hash is deleted and used for the next period. MARK is the
--          number of the period; it is negative once the other hash is in use.
--          A bucket with debt, reservations or a pause may need longer than the period of its
--          quota, and callers may have different quotas for it: then it is in the class of the
--          longer period, and in that class only. The directory has for each name the periods of
--          the classes in which there may be buckets, each with the time until which there may be.

local call, pack, unpack_d, floor = redis.call, struct.pack, struct.unpack, math.floor

local t = call('TIME')
local now = t[1] * 1000000 + t[2]
local argument, recovered, count = ARGV[1], tonumber(ARGV[3]) or 1, #ARGV - 3

-- The field of the epoch in the directory, and of its number in a hash of buckets: no name and no
-- field of a bucket is this byte alone.
local MARK = '\255'

-- Values of this length make Redis store a hash as a table. A list would be searched from its
-- beginning for each field.
local function mark(number) return string.format('%-72d', number) end

local stored, levels, time = {}, {}, now
local runs, classes, order = {}, {}, {}
-- The class in which a bucket was found, if it is not that of its run.
local found = {}

local function class_of(period, hash, other)
  local class = classes[period]
  if not class then
    local number = floor(now / period) + 2
    if not hash then
      local prefix = string.sub(KEYS[1], 1, -#'directory' - 1)
      prefix = prefix .. string.format('%ds:', period / 1000000)
      hash, other = prefix .. 0, prefix .. 1
    end
    local current, previous = hash, other
    if number % 2 == 1 then current, previous = other, hash end
    class = { [0] = hash, [1] = other, current = current, previous = previous, period = period,
      number = number, wanted = {}, out = {}, is_read = false, is_open = false, is_new = false }
    classes[period] = class
    order[#order + 1] = class
  end
  return class
end

-- Runs a command on a hash. A key of another type, which no call has written, is deleted.
local function on_hash(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if not string.find(reply.err, 'WRONGTYPE', 1, true) then call(command, key, ...) end
  call('UNLINK', key)
  return {}
end

local function fetch(key, fields) return on_hash('HMGET', key, unpack(fields)) end

-- Finds out which hash is that of this period, if its mark does not say so.
local function open(class)
  local number, numbers = class.number, {}
  for i = 0, 1 do numbers[i] = tonumber(fetch(class[i], { MARK })[1]) or 0 end
  local newest = numbers[1] > numbers[0] and 1 or 0
  local latest = numbers[newest]
  if latest > number then
    -- The server's clock was set back. The hashes are renumbered, so that both are read for at
    -- least one more period.
    number = number + (number % 2 ~= newest and 1 or 2)
    local before = math.abs(numbers[1 - newest]) == latest - 1
    class.current, class.previous = class[newest], before and class[1 - newest]
    if number ~= latest then
      call('HSET', class.current, MARK, mark(number))
      if before then
        call('HSET', class.previous, MARK, mark(1 - number))
      else
        call('UNLINK', class[1 - newest])
      end
    end
  else
    local latest, before = numbers[number % 2], numbers[(number + 1) % 2]
    local has_previous = math.abs(before) == number - 1
    class.is_new = latest ~= number
    class.supersedes = class.is_new and before == number - 1
    if class.is_new then
      -- All buckets in them are full. If the clock is set back, they must not be found again.
      if latest ~= 0 then call('UNLINK', class.current) end
      if before ~= 0 and not has_previous then call('UNLINK', class.previous) end
    end
    class.previous = has_previous and class.previous
  end
  class.is_open = true
end

-- Reads the wanted buckets from the hashes of a class, as far as they are there.
local function read(class, wanted)
  local fields, missing, absent = { MARK }
  for j = 1, #wanted do fields[j + 1] = ARGV[3 + wanted[j]] end
  local values = class.is_new and {} or fetch(class.current, fields)
  if not class.is_open and tonumber(values[1]) ~= class.number then
    open(class)
    values = class.is_new and {} or fetch(class.current, fields)
  end
  class.is_read = true
  for j = 1, #wanted do
    local value = values[j + 1]
    if value then
      stored[wanted[j]] = value
    else
      if not absent then missing, absent = { MARK }, {} end
      missing[#missing + 1], absent[#absent + 1] = fields[j + 1], wanted[j]
    end
  end
  if not absent or not class.previous then return end
  values = fetch(class.previous, missing)
  if not class.is_open and tonumber(values[1]) ~= 1 - class.number then return end
  for j = 1, #absent do
    if values[j + 1] then stored[absent[j]] = values[j + 1] end
  end
end

local listed = {}

-- Writes the directory's entry of a name.
local function save(name)
  local packed = ''
  for period, until_ in pairs(listed[name]) do packed = packed .. pack('<dd', period, until_) end
  if packed == '' then
    call('HDEL', KEYS[1], name)
  else
    call('HSET', KEYS[1], name, packed)
  end
end

local pos, last, names = 1, 0, { MARK }
while last < count do
  local buckets, length, key, period, cap, rate, cost, n, max_wait
  buckets, length, key, period, cap, rate, cost, n, max_wait, pos =
    unpack_d('<ddddddddd', argument, pos)
  local first, name = last + 1, string.sub(ARGV[4 + last], 1, length)
  last = last + buckets
  local class = class_of(period, KEYS[key], KEYS[key + 1])
  runs[#runs + 1] = { first = first, last = last, name = name, class = class, cap = cap,
    rate = rate, cost = cost, n = n, max_wait = max_wait }
  local wanted = class.wanted
  for i = first, last do wanted[#wanted + 1] = i end
  if not listed[name] then names[#names + 1], listed[name] = name, {} end
end
local directory = fetch(KEYS[1], names)
local epoch = ARGV[2]
if epoch ~= '' and string.sub(directory[1] or '', 1, 8) ~= epoch then return '' end
for j = 2, #names do
  local list, periods, has_lapsed = directory[j] or '', listed[names[j]], false
  for at = 1, #list - 15, 16 do
    local period, until_ = unpack_d('<dd', list, at)
    if not (period >= 16000000 and period <= 2e19) then
      has_lapsed = true -- no call has written this
    elseif until_ > now then
      periods[period] = until_
    else
      -- The hashes of that time are deleted: if the clock is set back, their buckets must not be
      -- found again.
      open(class_of(period))
      has_lapsed = true
    end
  end
  if has_lapsed then save(names[j]) end
end
for j = 1, #order do read(order[j], order[j].wanted) end
-- Buckets that are not there may be in another class of their name: the shortest period first.
local others, runs_of
for r = 1, #runs do
  local run = runs[r]
  for period in pairs(listed[run.name]) do
    if period ~= run.class.period then
      if not others then others, runs_of = {}, {} end
      if not runs_of[period] then others[#others + 1], runs_of[period] = period, {} end
      table.insert(runs_of[period], run)
    end
  end
end
if others then table.sort(others) end
for j = 1, others and #others or 0 do
  local wanted = {}
  for _, run in ipairs(runs_of[others[j]]) do
    for i = run.first, run.last do
      if not stored[i] then wanted[#wanted + 1] = i end
    end
  end
  if wanted[1] then
    local class = class_of(others[j])
    read(class, wanted)
    for k = 1, #wanted do
      if stored[wanted[k]] then found[wanted[k]] = class end
    end
  end
end

-- Notes that buckets of a name may be in a class. When that time is over, the hash in which they
-- are is not that of the period before any more.
local function list(name, period)
  local periods = listed[name]
  if (periods[period] or 0) >= now + 2 * period then return end
  periods[period] = now + 4 * period
  save(name)
  local kept = math.min(5 * period / 1000, 9007199254740992)
  if call('PTTL', KEYS[1]) < kept then call('PEXPIRE', KEYS[1], string.format('%d', kept)) end
end

-- The common case: a bucket that has only a level, and all callers are granted at once, or one that
-- does not wait is rejected.
local has_steps = pos <= #argument
local rare, run_of, details
for r = 1, #runs do
  local run = runs[r]
  local cap, rate, cost, n, home = run.cap, run.rate, run.cost, run.n, run.class
  local is_common = recovered == 1 and n > 0 and cost > 0 and cost <= cap
  for i = run.first, run.last do
    local value, level, at, max_cap, min_rate = stored[i], cap, now, cap, rate
    local class = found[i] or home
    if value and #value == 32 then
      level, at, max_cap, min_rate = unpack_d('<dddd', value)
      value = nil
    end
    local is_plain = class == home and max_cap == cap and min_rate == rate
    if not is_plain then
      -- It was used by another quota, and stays in its class.
      is_plain = not has_steps and max_cap >= cap and max_cap <= 1e100 and min_rate <= rate
        and min_rate > 0 and max_cap / min_rate <= home.period
        and (class == home or class.period == 2 * home.period)
    end
    if is_common and not value and is_plain and at <= now then
      level = level + (now - at) * rate
      if level > cap then level = cap end
      if level >= max_cap then max_cap, min_rate = cap, rate end
      if level >= cost and (n == 1 or level / cost >= n + 1) then
        level = level - n * cost
        levels[i] = level
        local out = class.out
        out[#out + 1] = ARGV[3 + i]
        out[#out + 1] = pack('<dddd', level, now, max_cap, min_rate)
        if class ~= home then list(run.name, class.period) end
      elseif level >= 0 and level < cost and n == 1 and run.max_wait == 0 and not has_steps then
        details, levels[i] = details or {}, math.huge
        local retry_after = math.max(math.ceil((cost - level) / rate), 1)
        details[i] = pack('<dddddd', 0, 0, 0, retry_after, level, 0)
      else
        level = nil
      end
    else
      level = nil
    end
    if not level then
      if not rare then rare, run_of = {}, {} end
      rare[#rare + 1], run_of[i] = i, run
    end
  end
  if home.out[1] then list(run.name, home.period) end
end

local answers, moved
if rare or has_steps then
  answers, moved, details = {}, {}, details or {}
  local ceil, max, min = math.ceil, math.max, math.min
  -- Reservations are adjacent if one begins at most this long before or after the other is due.
  local ADJACENT_US = 2
  -- A bucket stores at most 64 gaps, each of three numbers.
  local MAX_GAPS = 3 * 64

  local function remove_gap(gaps, i)
    for _ = 1, 3 do table.remove(gaps, i) end
  end

  local function room(bucket, level)
    return max(bucket.cap - bucket.largest - max(level, 0), 0)
  end

  local function end_queue(bucket)
    for j = 3, #bucket.gaps, 3 do bucket.returned = bucket.returned + bucket.gaps[j] end
    bucket.gaps, bucket.level = {}, min(bucket.cap, bucket.level + bucket.returned)
    bucket.last_due, bucket.largest, bucket.returned = 0, 0, 0
  end

  local function apply_pause(bucket)
    bucket.level = min(bucket.level, (bucket.at - bucket.paused_until) * bucket.rate)
    bucket.returned = 0
  end

  -- Returns the bucket in a value, if a call may have written it.
  local function parse(value, rate)
    local length = #value
    local b = { last_due = 0, largest = 0, returned = 0, paused_until = 0, pause_rate = 0,
      gaps = {} }
    if length == 32 then
      b.level, b.at, b.max_cap, b.min_rate = unpack_d('<dddd', value)
    elseif length == 56 then
      b.level, b.at, b.max_cap, b.min_rate, b.last_due, b.largest, b.returned =
        unpack_d('<ddddddd', value)
    elseif length >= 72 and (length - 72) % 24 == 0 then
      b.level, b.at, b.max_cap, b.min_rate, b.last_due, b.largest, b.returned, b.paused_until,
        b.pause_rate = unpack_d('<ddddddddd', value)
      local gaps = b.gaps
      for offset = 73, length, 24 do
        local n = #gaps
        local from, due, tokens = unpack_d('<ddd', value, offset)
        if not (n < MAX_GAPS and from < due and from - from == 0 and due <= b.last_due
            and due >= (gaps[n - 1] or -math.huge) and tokens > 0
            and tokens <= b.max_cap * 1e10) then
          return
        end
        gaps[n + 1], gaps[n + 2], gaps[n + 3] = from, due, tokens
      end
    else
      return
    end
    -- x - x is zero, unless x is infinite or not a number. No call writes a negative amount, a wait
    -- of 300 years, or a debt that takes 300 years to refill at a ten-thousandth of the rate.
    if b.min_rate <= 0 or b.max_cap <= 0 or b.max_cap > 1e100 or b.largest < 0 or b.returned < 0
        or b.pause_rate < 0 or b.pause_rate > 1e100 or b.last_due - b.at > 1e16
        or b.paused_until - b.at > 1e16
        or b.level < -2 * b.max_cap - 1e20 * (rate + b.pause_rate)
        or (b.level - b.level) + (b.at - b.at) + (b.max_cap - b.max_cap) + (b.min_rate - b.min_rate)
        + (b.last_due - b.last_due) + (b.largest - b.largest) + (b.returned - b.returned)
        + (b.paused_until - b.paused_until) + (b.pause_rate - b.pause_rate) ~= 0 then
      return
    end
    return b
  end

  local function refill(bucket)
    local cap, rate, gaps = bucket.cap, bucket.rate, bucket.gaps
    -- A time that is far ahead means that the server's clock was set back.
    if bucket.at > now + 1000000 then
      local step = bucket.at - now
      bucket.last_due, bucket.paused_until = bucket.last_due - step, bucket.paused_until - step
      for j = 1, #gaps, 3 do gaps[j], gaps[j + 1] = gaps[j] - step, gaps[j + 1] - step end
      bucket.at = now
      bucket.changed = true
    end
    -- A change of the rate does not change the length of a pause.
    if bucket.paused_until > bucket.at and bucket.pause_rate ~= rate then
      bucket.level = bucket.level
        + (bucket.paused_until - bucket.at) * (bucket.pause_rate - rate)
    end
    local us = 0
    if now > bucket.at then
      us = now - bucket.at
      if recovered < 1 then
        local reserved = max(bucket.last_due - bucket.at, 0) * rate * recovered
        local to_full = (1 - recovered) * cap - reserved - bucket.level
        local at_full_rate = min(us, max(to_full / (rate * (1 - recovered)), 0))
        us = at_full_rate + (us - at_full_rate) * recovered
      end
      bucket.at = now
    end
    bucket.level = min(cap, bucket.level + us * rate)
    while gaps[2] and gaps[2] <= bucket.at do
      bucket.returned = bucket.returned + gaps[3]
      remove_gap(gaps, 1)
    end
    if gaps[1] then
      local length = gaps[2] - gaps[1]
      local excess = max(gaps[3] * ((bucket.at - gaps[1]) / length) - bucket.largest, 0)
      gaps[1], gaps[3] = gaps[1] + length * (excess / gaps[3]), gaps[3] - excess
      bucket.returned = bucket.returned + excess
    end
    if bucket.returned > 0 then
      local since = max(bucket.at - bucket.last_due, 0) * rate * recovered
      bucket.returned = min(bucket.returned, room(bucket, bucket.level - since))
    end
    if bucket.last_due <= bucket.at then end_queue(bucket) end
    if bucket.paused_until > bucket.at then
      apply_pause(bucket)
    else
      bucket.paused_until = 0
    end
  end

  -- Returns the first gap that has room for cost: its index, and from when and how long the cost
  -- fills it.
  local function gap_for(bucket, cost)
    local gaps, at, paused_until = bucket.gaps, bucket.at, bucket.paused_until
    if cost > bucket.cap then return end
    for i = 1, #gaps, 3 do
      local from, due, tokens = gaps[i], gaps[i + 1], gaps[i + 2]
      local length = (due - from) * (cost / tokens)
      local start = paused_until > at and max(from, paused_until) or from
      if cost <= tokens and start + length <= due + 0.5 then return i, start, length end
    end
  end

  local function whole(have, cost)
    if have < cost then return 0 end
    local k = floor(have / cost)
    if k * cost > have then return k - 1 end
    return k
  end

  -- Returns how many are granted at once and in all, the wait of the last one, and when a rejected
  -- one may retry.
  local function take(bucket, cost, n, max_wait)
    if cost <= 0 then return n, n, 0, 0 end
    local cap, rate = bucket.cap, bucket.rate
    -- A cost over the capacity is granted by a full bucket, into debt.
    local over, ready = max(cost - cap, 0), 0
    if over > 0 then
      if bucket.level >= cap then ready = 1 end
    else
      ready = min(whole(bucket.level, cost), n)
    end
    bucket.level = bucket.level - ready * cost
    local from_returned = min(whole(bucket.returned, cost), n - ready)
    bucket.returned = bucket.returned - from_returned * cost
    local at_once, wait, retry_after = ready + from_returned, 0, 0
    local granted, left = at_once, n - at_once
    local gap, start, length
    if left > 0 and n == 1 then gap, start, length = gap_for(bucket, cost) end
    local gap_wait = gap and max(ceil(start + length - bucket.at), 0)
    if gap and gap_wait <= max_wait then
      local gaps = bucket.gaps
      local from, due, tokens = gaps[gap], gaps[gap + 1], gaps[gap + 2]
      local paused = tokens * ((start - from) / (due - from))
      tokens, from = tokens - (cost + paused), start + length
      gaps[gap], gaps[gap + 2] = from, tokens
      if tokens <= 0 or from >= due then remove_gap(gaps, gap) end
      if gap_wait <= 0 then at_once = 1 end
      granted, wait, bucket.largest = 1, gap_wait, max(bucket.largest, cost)
    elseif left > 0 then
      local level = bucket.level
      local later = min(max(floor((level + over + max_wait * rate) / cost), 0), left)
      if later > 0 and ceil((later * cost - over - level) / rate) > max_wait then
        later = later - 1
      elseif later < left and ceil(((later + 1) * cost - over - level) / rate) <= max_wait then
        later = later + 1
      end
      if later < left then
        retry_after = ceil(((later + 1) * cost - over - level) / rate)
        if gap then retry_after = min(retry_after, gap_wait) end
        retry_after = max(retry_after - max_wait, 1)
      end
      if later > 0 then
        granted = granted + later
        wait = ceil((later * cost - over - level) / rate)
        bucket.level = level - later * cost
        bucket.last_due = max(bucket.last_due, bucket.at + wait)
        bucket.largest = max(bucket.largest, min(cost, cap))
      end
    end
    if granted > 0 then bucket.changed = true end
    return at_once, granted, wait, retry_after
  end

  -- The buckets that are decided here, and their indices in the call.
  local buckets, touched = {}, {}

  local function add(i, run, bucket)
    bucket.cap, bucket.rate, bucket.run = run.cap, run.rate, run
    buckets[i], touched[#touched + 1] = bucket, i
    return bucket
  end

  local function full(run)
    return { level = run.cap, at = now, max_cap = run.cap, min_rate = run.rate, last_due = 0,
      largest = 0, returned = 0, paused_until = 0, pause_rate = 0, gaps = {} }
  end

  for j = 1, rare and #rare or 0 do
    local i = rare[j]
    local run = run_of[i]
    local bucket = add(i, run, stored[i] and parse(stored[i], run.rate) or full(run))
    bucket.max_cap = max(bucket.max_cap, run.cap)
    bucket.min_rate = min(bucket.min_rate, run.rate)
    refill(bucket)
    if bucket.level >= bucket.max_cap and bucket.last_due == 0 and bucket.paused_until == 0 then
      bucket.max_cap, bucket.min_rate = run.cap, run.rate
    end
    if bucket.at > now then time = 0 end
    if run.n > 0 then bucket.first = { take(bucket, run.cost, run.n, run.max_wait) } end
  end

  if has_steps then
    local function bucket_of(i)
      if buckets[i] then return buckets[i] end
      -- The common case decided its first request.
      local r = 1
      while runs[r].last < i do r = r + 1 end
      local bucket = add(i, runs[r], full(runs[r]))
      bucket.level, bucket.changed, stored[i] = levels[i], true, stored[i] or ''
      return bucket
    end

    local function quote(bucket, cost)
      local need = min(cost, bucket.cap)
      if bucket.level >= need or bucket.returned >= cost then return 0 end
      local gap, start, length = gap_for(bucket, cost)
      if gap then return max(ceil(start + length - bucket.at), 0) end
      return ceil((need - bucket.level) / bucket.rate)
    end

    local function give_back(bucket, tokens)
      if bucket.paused_until > bucket.at then
        -- Dropped: the tokens would end the pause early, or be granted as a burst after it.
      elseif bucket.last_due <= bucket.at then
        bucket.level = min(bucket.cap, bucket.level + tokens)
      else
        bucket.returned = min(bucket.returned + tokens, room(bucket, bucket.level))
      end
    end

    -- Stores a reservation that was cancelled in the middle of the queue, joined with the gaps
    -- adjacent to it.
    local function remember(gaps, from, due, tokens)
      if from >= due then return end
      local next = 1
      while gaps[next] and gaps[next + 1] < due do next = next + 3 end
      local before, after = next > 1, gaps[next] ~= nil
      if before and math.abs(from - gaps[next - 2]) > ADJACENT_US then before = false end
      if after and math.abs(gaps[next] - due) > ADJACENT_US then after = false end
      if before and after then
        gaps[next - 2] = gaps[next + 1]
        gaps[next - 1] = gaps[next - 1] + (tokens + gaps[next + 2])
        remove_gap(gaps, next)
      elseif before then
        gaps[next - 2], gaps[next - 1] = due, gaps[next - 1] + tokens
      elseif after then
        gaps[next], gaps[next + 2] = from, gaps[next + 2] + tokens
      elseif #gaps < MAX_GAPS then
        table.insert(gaps, next, from)
        table.insert(gaps, next + 1, due)
        table.insert(gaps, next + 2, tokens)
      end
    end

    -- Undoes the last reservation of the queue as if it had never been made, and then the one
    -- before it, if that is a gap.
    local function undo(bucket, tokens, due, from)
      if due <= bucket.at then
        -- Tokens that have refilled since may be used already.
        return give_back(bucket, max(tokens - (bucket.at - due) * bucket.rate, 0))
      end
      if due <= bucket.paused_until or due > bucket.last_due + ADJACENT_US then return end
      local gaps = bucket.gaps
      if due < bucket.last_due - ADJACENT_US then
        if tokens <= bucket.cap then remember(gaps, from, due, tokens) end
        return
      end
      bucket.level, bucket.last_due = min(bucket.cap, bucket.level + tokens), from
      while gaps[1] and gaps[#gaps - 1] >= bucket.last_due - ADJACENT_US do
        local last = #gaps - 2
        bucket.level = min(bucket.cap, bucket.level + gaps[last + 2])
        bucket.last_due = gaps[last]
        remove_gap(gaps, last)
      end
      if bucket.last_due <= bucket.at + ADJACENT_US then end_queue(bucket) end
      if bucket.paused_until > bucket.at then apply_pause(bucket) end
    end

    local function number()
      local value
      value, pos = unpack_d('<d', argument, pos)
      return value
    end

    local size = #argument
    while pos <= size do
      local op = number()
      if op == 0 then -- take
        local n, max_wait, m = number(), number(), number()
        local named, cost, which, longest = {}, {}, 1, -1
        for j = 1, m do named[j], cost[j] = bucket_of(number()), number() end
        if m == 1 then
          local at_once, granted, wait, retry_after = take(named[1], cost[1], n, max_wait)
          answers[#answers + 1] = pack('<ddddd', at_once, granted, wait, retry_after, 1)
        else
          for j = 1, m do
            local wait = quote(named[j], cost[j])
            if wait > longest then which, longest = j, wait end
          end
          if longest <= 0 then
            for j = 1, m do take(named[j], cost[j], 1, 0) end
            answers[#answers + 1] = pack('<ddddd', 1, 1, 0, 0, 1)
          elseif longest <= max_wait then
            take(named[which], cost[which], 1, max_wait)
            answers[#answers + 1] = pack('<ddddd', 0, 1, longest, 0, which)
          else
            answers[#answers + 1] = pack('<ddddd', 0, 0, 0, max(longest - max_wait, 1), which)
          end
        end
      else
        local bucket, changed = bucket_of(number()), true
        if op == 1 then -- give back
          give_back(bucket, number())
        elseif op == 2 or op == 7 then -- charge, write back
          local tokens = number()
          local from_returned = min(bucket.returned, tokens)
          bucket.returned = bucket.returned - from_returned
          local level = bucket.level - (tokens - from_returned)
          if op == 2 then
            level = max(level, -bucket.cap - max(bucket.last_due - bucket.at, 0) * bucket.rate)
          else
            local wait, largest = number(), number()
            if wait > 0 then
              bucket.last_due = max(bucket.last_due, bucket.at + wait)
              bucket.largest = max(bucket.largest, largest)
            end
          end
          bucket.level = min(bucket.level, level)
        elseif op == 3 then -- reset
          bucket.level, bucket.last_due, bucket.largest = bucket.cap, 0, 0
          bucket.returned, bucket.paused_until, bucket.gaps = 0, 0, {}
        elseif op == 4 then -- inspect
          changed = false
        elseif op == 5 then -- cap the level
          local tokens = number()
          bucket.level = min(bucket.level, tokens)
          bucket.returned = min(bucket.returned, max(tokens, 0))
        elseif op == 6 then -- empty it, or stop
          if bucket.level < bucket.cap then break end
          bucket.level = 0
        elseif op == 8 then -- lease
          local tokens, ahead = number(), 0
          if bucket.last_due <= bucket.at then
            ahead = max(min(tokens, floor(bucket.level - bucket.cap / 2)), 0)
          end
          bucket.level, changed = bucket.level - ahead, ahead > 0
          answers[#answers + 1] = pack('<ddddd', ahead, ahead, 0, 0, 1)
        elseif op == 9 then -- pause
          bucket.paused_until = max(bucket.paused_until, bucket.at + number())
          if bucket.paused_until > bucket.at then
            local gaps = bucket.gaps
            while gaps[2] and gaps[2] <= bucket.paused_until do remove_gap(gaps, 1) end
            apply_pause(bucket)
          end
        else -- undo
          undo(bucket, number(), number(), number())
        end
        if changed then bucket.changed = true end
      end
    end
  end

  -- Puts the value of a bucket into the class that remembers it until it is full.
  local function write(i, bucket)
    local gaps, value = bucket.gaps
    if gaps[1] or bucket.paused_until > bucket.at then
      value = pack('<ddddddddd', bucket.level, bucket.at, bucket.max_cap, bucket.min_rate,
        bucket.last_due, bucket.largest, bucket.returned, bucket.paused_until,
        bucket.paused_until > bucket.at and bucket.rate or 0)
      for j = 1, #gaps, 3 do value = value .. pack('<ddd', gaps[j], gaps[j + 1], gaps[j + 2]) end
    elseif bucket.last_due > bucket.at then
      value = pack('<ddddddd', bucket.level, bucket.at, bucket.max_cap, bucket.min_rate,
        bucket.last_due, bucket.largest, bucket.returned)
    else
      value = pack('<dddd', bucket.level, bucket.at, bucket.max_cap, bucket.min_rate)
    end
    -- The server's clock may be up to a second behind `at`.
    local full_in = bucket.at - now
      + max((bucket.max_cap - bucket.level) / bucket.min_rate, bucket.last_due - bucket.at)
    -- Until all peers have recovered, or are no longer expected, the bucket refills more slowly.
    if recovered < 1 then full_in = full_in + 10000000 end
    full_in = max(full_in, bucket.max_cap / bucket.min_rate)
    local home, period = bucket.run.class, bucket.run.class.period
    while period < full_in and period < 9e18 do period = period * 2 end
    local from = found[i] or home
    -- It would move back and forth.
    if from.period == 2 * period then period = from.period end
    local class = class_of(period)
    local out = class.out
    out[#out + 1], out[#out + 2] = ARGV[3 + i], value
    if class ~= from and stored[i] then moved[#moved + 1], moved[#moved + 2] = from, ARGV[3 + i] end
    list(bucket.run.name, period)
  end

  for j = 1, #touched do
    local i = touched[j]
    local bucket = buckets[i]
    if bucket.changed then write(i, bucket) end
    local free, gaps, first = bucket.level, bucket.gaps, bucket.first
    for k = 3, #gaps, 3 do free = free + gaps[k] end
    local n = bucket.run.n
    if bucket.returned == 0 and bucket.paused_until <= bucket.at
        and (not first or first[1] == n) then
      levels[i] = free
    else
      first = first or { n, n, 0, 0 }
      levels[i] = math.huge
      details[i] = pack('<dddddd', first[1], first[2], first[3], first[4], free,
        bucket.paused_until > bucket.at and bucket.at - bucket.paused_until or bucket.returned)
    end
  end
end

for j = 1, #order do
  local class = order[j]
  if class.out[1] then
    if not class.is_read and not class.is_open then open(class) end
    if class.is_new then
      if class.supersedes then call('HSET', class.previous, MARK, mark(1 - class.number)) end
      call('UNLINK', class.current)
      call('HSET', class.current, MARK, mark(class.number), unpack(class.out))
      -- A heartbeat deletes it one period before, without delaying others.
      local kept = math.min(4 * class.period / 1000, 9007199254740992)
      call('PEXPIRE', class.current, string.format('%d', kept))
    else
      call('HSET', class.current, unpack(class.out))
    end
  end
end

local reply = pack('<d' .. string.rep('d', count), time, unpack(levels))
if not details then return reply end
for j = 1, moved and #moved or 0, 2 do
  on_hash('HDEL', moved[j][0], moved[j + 1])
  on_hash('HDEL', moved[j][1], moved[j + 1])
end
local parts = { reply }
for i = 1, count do parts[#parts + 1] = details[i] end
for j = 1, answers and #answers or 0 do parts[#parts + 1] = answers[j] end
return table.concat(parts)
