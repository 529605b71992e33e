-- Keep events: all that are new, or none if the stream has no room for them.
-- KEYS: stream, event ids, name of the stream, then for each event its user's recent events.
-- ARGV: room of the stream, now (ms), life of an id (ms), bytes of recent events kept, their life
-- (s), a name for a stream that is new; then for each event its id, record and payload.
local FIRST, EACH = 6, 3
local count = #KEYS - 3
local expired = tonumber(ARGV[2]) - tonumber(ARGV[3])
local is_new, met, new = {}, {}, 0
for i = 1, count do
  local id = ARGV[FIRST + (i - 1) * EACH + 1]
  local kept_at = redis.call('ZSCORE', KEYS[2], id)
  is_new[i] = not met[id] and not (kept_at and tonumber(kept_at) > expired)
  met[id] = true
  if is_new[i] then new = new + 1 end
end
if redis.call('XLEN', KEYS[1]) + new > tonumber(ARGV[1]) then
  return false
end
local kept = tonumber(ARGV[4])
local answer = {}
for i = 1, count do
  local at = FIRST + (i - 1) * EACH
  answer[i] = 0
  if is_new[i] then
    answer[i] = 1
    redis.call('SET', KEYS[3], ARGV[6], 'NX')
    redis.call('XADD', KEYS[1], '*', 'event', ARGV[at + 3])
    redis.call('ZADD', KEYS[2], ARGV[2], ARGV[at + 1])
    local length = redis.call('APPEND', KEYS[3 + i], ARGV[at + 2])
    if length > kept then
      redis.call('SET', KEYS[3 + i], redis.call('GETRANGE', KEYS[3 + i], -kept, -1))
    end
    redis.call('EXPIRE', KEYS[3 + i], ARGV[5])
  end
end
-- Last: Redis refuses a script for want of memory only before its first write.
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', expired)
return answer
