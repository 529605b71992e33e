-- Writes packed rows unless what is stored is newer; returns how many were written.
--
-- KEYS: none, with the keys inside the blob (a single server); or those of the rows too (Cluster).
-- ARGV[1]: rows, each as uint32 key length, key, uint32 row length, row
-- ARGV[2]: how many rows
-- ARGV[3]: now, milliseconds since 1970
-- ARGV[4]: milliseconds that a row lives after its event time; "" for ever
-- ARGV[5]: milliseconds that a key lives after it was written; "" for ever
--
-- A row begins with its event time and its created time, both int64 microseconds. They are
-- compared as two 32-bit halves, because a Lua number cannot hold 64 bits exactly.
-- Calling a function costs more than what it does for one row: rows are decoded many at a time,
-- and read and written in batches.
local blob, count, now = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local after_event, after_write = tonumber(ARGV[4]), tonumber(ARGV[5])
local read, call, rep, min = struct.unpack, redis.call, string.rep, math.min
local BATCH, DECODED = 512, 128
local ROW = 'I4c0I4c0'
local ROWS = '<' .. rep(ROW, DECODED)
local at, done, written = 1, 0, 0

-- Whether a row replaces the stored one: newer, or equally old.
local function replaces(row, stored)
  local low, high, c_low, c_high = read('<I4i4I4i4', row)
  local s_low, s_high, sc_low, sc_high = read('<I4i4I4i4', stored)
  if high ~= s_high then return high > s_high end
  if low ~= s_low then return low > s_low end
  if c_high ~= sc_high then return c_high > sc_high end
  return c_low >= sc_low
end

-- Whole seconds, and each written out once: formatting a number costs as much as a SET.
local texts = {}
local function seconds_to_live(row)
  local lives = after_write
  if after_event then
    local low, high = read('<I4i4', row)
    local left = (high * 4294967296 + low) / 1000 + after_event - now
    if not lives or left < lives then lives = left end
  end
  local seconds = math.max(1, math.ceil(lives / 1000))
  local text = texts[seconds]
  if not text then
    text = string.format('%.0f', seconds)
    texts[seconds] = text
  end
  return text
end

while done < count do
  local keys, rows, place_of, n = {}, {}, {}, 0
  while done < count and n < BATCH do
    local several = min(DECODED, count - done)
    local got = { read(several == DECODED and ROWS or '<' .. rep(ROW, several), blob, at) }
    at, done = got[2 * several + 1], done + several
    for i = 1, 2 * several, 2 do
      local key, row = got[i], got[i + 1]
      local place = place_of[key]
      if not place then
        n = n + 1
        place_of[key], keys[n], rows[n] = n, key, row
      elseif replaces(row, rows[place]) then
        rows[place] = row
      end
    end
  end
  local stored = call('MGET', unpack(keys, 1, n))
  local pairs_to_set, m = {}, 0
  for i = 1, n do
    local old = stored[i]
    if not old or #old < 16 or replaces(rows[i], old) then
      if after_event or after_write then
        call('SET', keys[i], rows[i], 'EX', seconds_to_live(rows[i]))
      else
        pairs_to_set[m + 1], pairs_to_set[m + 2] = keys[i], rows[i]
        m = m + 2
      end
      written = written + 1
    end
  end
  if m > 0 then call('MSET', unpack(pairs_to_set, 1, m)) end
end
return written
