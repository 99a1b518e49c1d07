//! The values of buckets in Redis: one field each, in the hashes of `acquire.lua`.

use redis::FromRedisValue;

use super::redis_server::RedisServer;

/// The directory: the epoch, and the classes of each name.
pub const DIRECTORY: &str = "throttle:v1|{#}directory";

/// The field of the epoch in the directory, and of its number in a hash of buckets.
pub const MARK: &[u8] = b"\xff";

/// Defines `hash`, the hash with the bucket ARGV[1], and `other`, the other one of its class. Of
/// two hashes with the bucket, that of the present period counts.
const FIND: &str = r"
local hash, other
for _, key in ipairs(redis.call('KEYS', 'throttle:v1|{#}*s:[01]')) do
  if redis.call('TYPE', key).ok == 'hash' and redis.call('HEXISTS', key, ARGV[1]) == 1 then
    local is_present = tonumber(redis.call('HGET', key, '\255')) > 0
    if is_present or not hash then
      hash, other = key, string.sub(key, 1, -2) .. (1 - string.sub(key, -1))
    end
  end
end
if not hash then return redis.error_reply('ERR no bucket ' .. ARGV[1]) end
";

impl RedisServer {
    async fn with_bucket<T: FromRedisValue>(&self, field: &[u8], then: &str, value: &[u8]) -> T {
        let script = format!("{FIND}{then}");
        let words = [&b"EVAL"[..], script.as_bytes(), b"0", field, value];
        self.command(&words).await
    }

    /// The fields of all buckets, without those of this crate's own.
    pub async fn buckets(&self) -> Vec<Vec<u8>> {
        let script = r"
local buckets = {}
for _, key in ipairs(redis.call('KEYS', '*|{#}*s:[01]')) do
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if string.byte(field) ~= 255 then buckets[#buckets + 1] = field end
  end
end
return buckets";
        self.command(&["EVAL", script, "0"]).await
    }

    /// The key of the hash with this bucket.
    ///
    /// # Panics
    ///
    /// As all of these, if Redis does not have the bucket.
    pub async fn hash_of(&self, bucket: &str) -> String {
        self.with_bucket(bucket.as_bytes(), "return hash", b"")
            .await
    }

    /// The value of a bucket.
    pub async fn bucket(&self, bucket: &str) -> Vec<u8> {
        let get = "return redis.call('HGET', hash, ARGV[1])";
        self.with_bucket(bucket.as_bytes(), get, b"").await
    }

    /// Replaces the value of a bucket.
    pub async fn set_bucket(&self, bucket: &str, value: &[u8]) {
        let set = "redis.call('HSET', hash, ARGV[1], ARGV[2])";
        self.with_bucket::<()>(bucket.as_bytes(), set, value).await;
    }

    /// Replaces the value of a bucket by doubles.
    pub async fn set_bucket_numbers(&self, bucket: &str, numbers: &[f64]) {
        let bytes: Vec<_> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.set_bucket(bucket, &bytes).await;
    }

    /// Deletes a bucket and no other.
    pub async fn delete_bucket(&self, bucket: &str) {
        let delete = "redis.call('HDEL', hash, ARGV[1]) redis.call('HDEL', other, ARGV[1])";
        self.with_bucket::<()>(bucket.as_bytes(), delete, b"").await;
    }

    /// Deletes both hashes of a bucket's class, and so all buckets of that class, as evictions do.
    pub async fn evict_hashes_of(&self, bucket: &str) {
        let evict = "redis.call('DEL', hash, other)";
        self.with_bucket::<()>(bucket.as_bytes(), evict, b"").await;
    }

    /// The epoch: eight bytes, then the count of all heartbeats.
    pub async fn epoch(&self) -> Vec<u8> {
        let get = [&b"HGET"[..], DIRECTORY.as_bytes(), MARK];
        self.command(&get).await
    }

    /// The markers of write-backs that were executed.
    pub async fn write_backs(&self) -> usize {
        let script = r"
local count = 0
for _, key in ipairs(redis.call('KEYS', 'throttle:v1|{#}*s:[01]')) do
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if string.sub(field, 1, 7) == '\255#paid:' then count = count + 1 end
  end
end
return count";
        self.command(&["EVAL", script, "0"]).await
    }
}
