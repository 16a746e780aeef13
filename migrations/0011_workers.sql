-- Workers outside: what they tell while a job runs, what they gave back, and when they were last seen.

-- The lease under which a try ended that was not the last one, so that its report can be repeated. (That of the last one
-- stands in job_ends.)
ALTER TABLE ringback.job_attempts ADD COLUMN IF NOT EXISTS token uuid;

-- What a worker told of a running job. The checkpoint goes along with the job's next lease. Outlives the job's end, and is
-- purged with the retention.
CREATE TABLE ringback.job_progress (
  tenant_id   uuid NOT NULL,
  job_id      uuid NOT NULL,
  progress    bytea,                   -- JSON: percent, message
  checkpoint  bytea,                   -- JSON, as it came
  updated_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, job_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, vacuum_truncate = false);

-- Leases that were given back within the last hour: the same report again is no surprise.
CREATE TABLE ringback.released_leases (
  tenant_id    uuid NOT NULL,
  token        uuid NOT NULL,
  released_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, token)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, vacuum_truncate = false);
CREATE INDEX released_leases_age ON ringback.released_leases (released_at);

-- When a worker last asked for jobs of a kind, or told of one; to within a few seconds.
CREATE TABLE ringback.worker_sightings (
  tenant_id  uuid NOT NULL,
  kind       text NOT NULL,
  worker     text NOT NULL,
  seen_at    timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, kind)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200, vacuum_truncate = false);
