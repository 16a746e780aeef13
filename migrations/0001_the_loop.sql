-- The tables of the loop: a job is accepted, executed, and its end is delivered.
--
-- Tables say the state. History (jobs, job_ends, job_attempts, events, deliveries, delivery_attempts) is
-- insert-only and partitioned by day on its UUIDv7, whose first 48 bits are milliseconds. What waits or runs
-- stands in small hot tables (job_ready, job_scheduled, job_leases, event_inbox, delivery_queue), from which a
-- finished item is deleted. tenant_id leads every key. No foreign keys or triggers on the hot path.

-- ---------------------------------------------------------------- time in ids, and partitions

CREATE FUNCTION ringback.uuid_floor(at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid $$;
COMMENT ON FUNCTION ringback.uuid_floor IS 'The smallest UUIDv7-like value of a moment: the border between two partitions.';

-- Creates the partitions of the days first..last where they are missing. A table is made apart and then
-- attached: that takes SHARE UPDATE EXCLUSIVE on the parent, where PARTITION OF would stop every reader.
CREATE FUNCTION ringback.add_day_partitions(first date, last date) RETURNS integer
LANGUAGE plpgsql
AS $$
DECLARE
  parent text;
  day date;
  child text;
  made integer := 0;
BEGIN
  FOREACH parent IN ARRAY ARRAY['jobs', 'job_ends', 'job_attempts', 'events', 'deliveries', 'delivery_attempts'] LOOP
    day := first;
    WHILE day <= last LOOP
      child := parent || '_' || to_char(day, 'YYYYMMDD');
      IF to_regclass('ringback.' || child) IS NULL THEN
        EXECUTE format('CREATE TABLE ringback.%I (LIKE ringback.%I INCLUDING ALL)', child, parent);
        EXECUTE format('ALTER TABLE ringback.%I ATTACH PARTITION ringback.%I FOR VALUES FROM (%L) TO (%L)',
          parent, child,
          ringback.uuid_floor(day::timestamp AT TIME ZONE 'UTC'),
          ringback.uuid_floor((day + 1)::timestamp AT TIME ZONE 'UTC'));
        made := made + 1;
      END IF;
      day := day + 1;
    END LOOP;
  END LOOP;
  RETURN made;
END
$$;

-- ---------------------------------------------------------------- tenants, keys, secrets

CREATE TABLE ringback.tenants (
  id          uuid PRIMARY KEY,
  name        text NOT NULL,
  is_first    boolean NOT NULL DEFAULT false,
  created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX tenants_first ON ringback.tenants (is_first) WHERE is_first;

CREATE TABLE ringback.api_keys (
  tenant_id    uuid NOT NULL REFERENCES ringback.tenants,
  id           uuid NOT NULL,
  name         text NOT NULL,
  key_hash     bytea NOT NULL UNIQUE CHECK (octet_length(key_hash) = 32),
  scopes       text[] NOT NULL,
  is_operator  boolean NOT NULL DEFAULT false,
  created_at   timestamptz NOT NULL DEFAULT now(),
  expires_at   timestamptz,
  PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX api_keys_operator ON ringback.api_keys (is_operator) WHERE is_operator;

-- owner_id: the tenant for its callback secret, an endpoint for that endpoint's. A row without expires_at is
-- the current one; the others sign along until they expire.
CREATE TABLE ringback.signing_secrets (
  tenant_id   uuid NOT NULL,
  owner_id    uuid NOT NULL,
  id          uuid NOT NULL,
  sealed      bytea NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  expires_at  timestamptz,
  PRIMARY KEY (tenant_id, owner_id, id)
);
CREATE UNIQUE INDEX signing_secrets_current ON ringback.signing_secrets (tenant_id, owner_id) WHERE expires_at IS NULL;

-- Which master keys have sealed something here: a start with another one is refused before it does harm.
CREATE TABLE ringback.master_keys (
  key_id      integer PRIMARY KEY,
  created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE ringback.idempotency_keys (
  tenant_id    uuid NOT NULL,
  key          text NOT NULL,
  fingerprint  bytea NOT NULL,
  status       smallint NOT NULL,
  location     text,
  body         bytea NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, key)
);
CREATE INDEX idempotency_keys_age ON ringback.idempotency_keys (created_at);

-- ---------------------------------------------------------------- jobs

CREATE TABLE ringback.jobs (
  tenant_id         uuid NOT NULL,
  id                uuid NOT NULL,
  kind              text NOT NULL,
  queue             text NOT NULL,
  priority          smallint NOT NULL CHECK (priority BETWEEN -100 AND 100),
  run_at            timestamptz NOT NULL,
  timeout_ms        integer NOT NULL CHECK (timeout_ms > 0),
  max_attempts      integer NOT NULL CHECK (max_attempts > 0),
  backoff           text,              -- JSON; NULL: the defaults
  unique_key        text,
  input             bytea NOT NULL,    -- the JSON as it came
  metadata          jsonb,
  callback_url      text,
  callback_options  bytea,             -- sealed JSON: headers, on, secret, retry, timeout_s; NULL: the defaults
  traceparent       text,
  PRIMARY KEY (tenant_id, id)
) PARTITION BY RANGE (id);
CREATE INDEX jobs_metadata ON ringback.jobs USING gin (metadata jsonb_path_ops) WHERE metadata IS NOT NULL;

-- Waiting, and may be handed out now. attempt: the highest attempt number so far; tries: how many of them
-- count against max_attempts (POST retry starts a new round); crashes: how many ended with their process.
CREATE TABLE ringback.job_ready (
  tenant_id  uuid NOT NULL,
  job_id     uuid NOT NULL,
  queue      text NOT NULL,
  kind       text NOT NULL,
  priority   smallint NOT NULL,
  ready_at   timestamptz NOT NULL,
  attempt    integer NOT NULL DEFAULT 0,
  tries      integer NOT NULL DEFAULT 0,
  crashes    smallint NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant_id, job_id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000, vacuum_truncate = false);
CREATE INDEX job_ready_order ON ringback.job_ready (tenant_id, queue, kind, priority DESC, ready_at, job_id);

-- Waiting for a time: delayed, or between two tries (tries > 0).
CREATE TABLE ringback.job_scheduled (
  tenant_id  uuid NOT NULL,
  job_id     uuid NOT NULL,
  queue      text NOT NULL,
  kind       text NOT NULL,
  priority   smallint NOT NULL,
  due_at     timestamptz NOT NULL,
  attempt    integer NOT NULL DEFAULT 0,
  tries      integer NOT NULL DEFAULT 0,
  crashes    smallint NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant_id, job_id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000, vacuum_truncate = false);
CREATE INDEX job_scheduled_due ON ringback.job_scheduled (due_at);

-- Running. The token is the right to end the job: new at each hand-out, checked where the end is written.
-- No index on expires_at: the table is as small as what runs, and extensions stay HOT updates.
CREATE TABLE ringback.job_leases (
  tenant_id         uuid NOT NULL,
  job_id            uuid NOT NULL,
  token             uuid NOT NULL,
  holder            uuid NOT NULL,     -- the node that runs it
  queue             text NOT NULL,
  kind              text NOT NULL,
  priority          smallint NOT NULL,
  attempt           integer NOT NULL,
  tries             integer NOT NULL,
  crashes           smallint NOT NULL,
  started_at        timestamptz NOT NULL,
  expires_at        timestamptz NOT NULL,
  cancel_requested  boolean NOT NULL DEFAULT false,
  PRIMARY KEY (tenant_id, job_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000,
        vacuum_truncate = false);

-- status: 1 succeeded, 2 failed, 3 cancelled.
CREATE TABLE ringback.job_ends (
  tenant_id    uuid NOT NULL,
  job_id       uuid NOT NULL,
  status       smallint NOT NULL CHECK (status IN (1, 2, 3)),
  attempt      integer NOT NULL,
  token        uuid,                   -- the lease that ended it; NULL: it ended while waiting
  result       bytea,
  error        text,                   -- JSON
  started_at   timestamptz,
  finished_at  timestamptz NOT NULL,
  CHECK ((status = 1) = (error IS NULL) OR status = 3),
  PRIMARY KEY (tenant_id, job_id)
) PARTITION BY RANGE (job_id);
CREATE INDEX job_ends_not_succeeded ON ringback.job_ends (tenant_id, status, job_id) WHERE status <> 1;

-- outcome: 1 succeeded, 2 failed, 3 cancelled, 4 timed out, 5 crashed.
CREATE TABLE ringback.job_attempts (
  tenant_id    uuid NOT NULL,
  job_id       uuid NOT NULL,
  number       integer NOT NULL,
  worker       text NOT NULL,
  outcome      smallint NOT NULL CHECK (outcome BETWEEN 1 AND 5),
  error        text,                   -- JSON
  started_at   timestamptz NOT NULL,
  finished_at  timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, job_id, number)
) PARTITION BY RANGE (job_id);

-- A key is held while its job is not finished.
CREATE TABLE ringback.job_unique_keys (
  tenant_id  uuid NOT NULL,
  key        text NOT NULL,
  job_id     uuid NOT NULL,
  PRIMARY KEY (tenant_id, key)
);

-- ---------------------------------------------------------------- events

CREATE TABLE ringback.events (
  tenant_id     uuid NOT NULL,
  id            uuid NOT NULL,
  type          text NOT NULL,
  data          bytea NOT NULL,        -- the JSON as it came
  metadata      jsonb,
  ordering_key  text,
  traceparent   text,
  PRIMARY KEY (tenant_id, id)
) PARTITION BY RANGE (id);

-- Committed, not yet numbered. callback_job_id: deliver it to that job's callback as well.
CREATE TABLE ringback.event_inbox (
  tenant_id        uuid NOT NULL,
  event_id         uuid NOT NULL,
  type             text NOT NULL,
  callback_job_id  uuid,
  callback_target  uuid,
  PRIMARY KEY (tenant_id, event_id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000, vacuum_truncate = false);

-- The order in which events became visible: a position is given after commit, so that a cursor never passes a
-- late one by. Partitioned by position; see ringback.add_log_partitions.
CREATE TABLE ringback.event_log (
  tenant_id  uuid NOT NULL,
  position   bigint NOT NULL,
  event_id   uuid NOT NULL,
  type       text NOT NULL,
  PRIMARY KEY (tenant_id, position)
) PARTITION BY RANGE (position);

-- One row, whose lock makes the numbering owner.
CREATE TABLE ringback.event_sequence (
  one   boolean PRIMARY KEY DEFAULT true CHECK (one),
  last  bigint NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
INSERT INTO ringback.event_sequence (last) VALUES (0);

-- Keeps two empty partitions of 20 million positions ahead of the last one given.
CREATE FUNCTION ringback.add_log_partitions() RETURNS integer
LANGUAGE plpgsql
AS $$
DECLARE
  size constant bigint := 20000000;
  slot bigint;
  child text;
  made integer := 0;
BEGIN
  FOR slot IN SELECT s FROM generate_series((SELECT last / size FROM ringback.event_sequence),
                                            (SELECT last / size + 2 FROM ringback.event_sequence)) AS s LOOP
    child := 'event_log_' || lpad(slot::text, 8, '0');
    IF to_regclass('ringback.' || child) IS NULL THEN
      EXECUTE format('CREATE TABLE ringback.%I (LIKE ringback.event_log INCLUDING ALL)', child);
      EXECUTE format('ALTER TABLE ringback.event_log ATTACH PARTITION ringback.%I FOR VALUES FROM (%s) TO (%s)',
        child, slot * size, (slot + 1) * size);
      made := made + 1;
    END IF;
  END LOOP;
  RETURN made;
END
$$;

-- ---------------------------------------------------------------- deliveries

-- One event on its way to one receiver: an endpoint, or the callback of a job. target_id: who is called, for
-- fairness and limits; an endpoint's id, or for callbacks a hash of tenant and URL origin.
CREATE TABLE ringback.deliveries (
  tenant_id    uuid NOT NULL,
  id           uuid NOT NULL,
  event_id     uuid NOT NULL,
  event_type   text NOT NULL,
  endpoint_id  uuid,
  job_id       uuid,
  CHECK ((endpoint_id IS NULL) <> (job_id IS NULL)),
  PRIMARY KEY (tenant_id, id)
) PARTITION BY RANGE (id);
CREATE INDEX deliveries_event ON ringback.deliveries (tenant_id, event_id);

-- Not finished. due_at: now, or when the next try is due. The row goes when the delivery ends.
CREATE TABLE ringback.delivery_queue (
  tenant_id    uuid NOT NULL,
  delivery_id  uuid NOT NULL,
  lane         smallint NOT NULL,
  target_id    uuid NOT NULL,
  event_id     uuid NOT NULL,
  endpoint_id  uuid,
  job_id       uuid,
  due_at       timestamptz NOT NULL,
  attempt      integer NOT NULL DEFAULT 0,
  tries        integer NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant_id, delivery_id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000, vacuum_truncate = false);
CREATE INDEX delivery_queue_due ON ringback.delivery_queue (lane, due_at, delivery_id);

-- verdict: 1 succeeded, 2 failed for good, 0 to be tried again.
CREATE TABLE ringback.delivery_attempts (
  tenant_id         uuid NOT NULL,
  delivery_id       uuid NOT NULL,
  number            integer NOT NULL,
  id                uuid NOT NULL,
  verdict           smallint NOT NULL CHECK (verdict IN (0, 1, 2)),
  status_code       smallint,
  error_code        text,
  error_message     text,
  started_at        timestamptz NOT NULL,
  duration_us       integer NOT NULL,
  dns_us            integer,
  connect_us        integer,
  tls_us            integer,
  first_byte_us     integer,
  remote_address    text,
  response_headers  text,              -- JSON
  response_body     bytea,
  truncated         boolean NOT NULL DEFAULT false,
  PRIMARY KEY (tenant_id, delivery_id, number)
) PARTITION BY RANGE (delivery_id);
CREATE INDEX delivery_attempts_failed ON ringback.delivery_attempts (tenant_id, delivery_id) WHERE verdict = 2;

-- What a node has on the wire, one row a batch: after a crash the next owner records these tries as crashed.
CREATE TABLE ringback.delivery_flights (
  owner         uuid NOT NULL,
  id            uuid NOT NULL,
  tenant_ids    uuid[] NOT NULL,
  delivery_ids  uuid[] NOT NULL,
  attempts      integer[] NOT NULL,
  started_at    timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (owner, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, vacuum_truncate = false);

-- ---------------------------------------------------------------- nodes and lanes

-- Running processes. lock_key: a session advisory lock that the node holds while it lives, a quick sign of
-- death; expires_at is the slow one, for a node that cannot be heard.
CREATE TABLE ringback.nodes (
  id          uuid PRIMARY KEY,
  name        text NOT NULL,
  lock_key    bigint NOT NULL,
  started_at  timestamptz NOT NULL DEFAULT now(),
  expires_at  timestamptz NOT NULL
) WITH (fillfactor = 50);

-- lane = hash(tenant, target) mod 64. The epoch grows with every change of owner and fences writes.
CREATE TABLE ringback.lanes (
  lane   smallint PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
  owner  uuid,
  epoch  bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
INSERT INTO ringback.lanes (lane) SELECT generate_series(0, 63);

SELECT ringback.add_day_partitions((now() AT TIME ZONE 'UTC')::date - 1, (now() AT TIME ZONE 'UTC')::date + 3);
SELECT ringback.add_log_partitions();
