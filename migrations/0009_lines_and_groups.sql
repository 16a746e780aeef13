-- Lines (jobs that share an ordering_key in a queue run one after another, in the order accepted) and groups (jobs that
-- wait for others).
--
-- A job with an ordering_key or with others to wait for is accepted into job_held. The placer (engine::place_held), one at
-- a time over all processes, moves it to job_ready or job_scheduled when its turn has come. Everybody else only inserts here,
-- and a transaction of a user's own that is open for hours holds nothing that the placer needs.

-- place: the order of acceptance, taken before the commit; of two jobs of which one was accepted after the other was
-- acknowledged, the later one has the greater place. after_ids: which jobs it waits for; after_failure: 0 cancel, 1 run.
ALTER TABLE ringback.jobs
  ADD COLUMN ordering_key text,
  ADD COLUMN place bigint,
  ADD COLUMN after_ids uuid[],
  ADD COLUMN after_failure smallint CHECK (after_failure IN (0, 1));
CREATE SEQUENCE ringback.job_places;

-- Not yet among the jobs that may be handed out. pending: for how many jobs it waits; below 1: for none. doomed_by: that job
-- did not succeed, and so this one is to be cancelled.
CREATE TABLE ringback.job_held (
  tenant_id          uuid NOT NULL,
  job_id             uuid NOT NULL,
  queue              text NOT NULL,
  kind               text NOT NULL,
  priority           smallint NOT NULL,
  run_at             timestamptz NOT NULL,
  attempt            integer NOT NULL DEFAULT 0,
  ordering_key       text,
  place              bigint,           -- NULL without an ordering_key
  pending            integer NOT NULL,
  cancel_on_failure  boolean NOT NULL,
  doomed_by          uuid,
  PRIMARY KEY (tenant_id, job_id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000,
        vacuum_truncate = false);
CREATE INDEX job_held_line ON ringback.job_held (tenant_id, queue, ordering_key, place) WHERE ordering_key IS NOT NULL;
CREATE INDEX job_held_doomed ON ringback.job_held (tenant_id, job_id) WHERE doomed_by IS NOT NULL;

-- job_id waits for the end of after_id. The row goes when the placer has seen that end, whether job_id is still held or not.
CREATE TABLE ringback.job_waits (
  tenant_id  uuid NOT NULL,
  after_id   uuid NOT NULL,
  job_id     uuid NOT NULL,
  PRIMARY KEY (tenant_id, after_id, job_id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000, vacuum_truncate = false);

-- Whose turn it is in a line: this job has left job_held and has not ended, so the others wait. Written by the placer only.
CREATE TABLE ringback.job_heads (
  tenant_id     uuid NOT NULL,
  queue         text NOT NULL,
  ordering_key  text NOT NULL,
  job_id        uuid NOT NULL,
  PRIMARY KEY (tenant_id, queue, ordering_key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000,
        vacuum_truncate = false);

-- "Look at this job": it was accepted into job_held, or it ended and others may have waited for that. what: 0 ended,
-- 1 accepted, 2 accepted a moment ago. weight: how many jobs it waits for, so that a round of the placer stays short.
CREATE TABLE ringback.job_calls (
  tenant_id  uuid NOT NULL,
  what       smallint NOT NULL CHECK (what IN (0, 1, 2)),
  id         bigint GENERATED ALWAYS AS IDENTITY,
  job_id     uuid NOT NULL,
  weight     integer NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant_id, what, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000, vacuum_truncate = false);

-- ---------------------------------------------------------------- submit

-- The options that are given, null being none; refuses names that nobody knows.
CREATE OR REPLACE FUNCTION ringback.given_options(options jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
  known constant text[] := ARRAY['queue', 'priority', 'run_at', 'delay_s', 'max_attempts', 'timeout_s', 'callback_url',
    'unique_key', 'metadata', 'ordering_key', 'after', 'after_failure'];
  name text;
  given jsonb := '{}';
BEGIN
  IF options IS NULL THEN
    RETURN given;
  ELSIF jsonb_typeof(options) <> 'object' THEN
    PERFORM ringback.refuse('options must be an object');
  END IF;
  FOR name IN SELECT o.key FROM jsonb_each(options) AS o WHERE jsonb_typeof(o.value) <> 'null' ORDER BY o.key LOOP
    IF name IN ('callback', 'backoff') THEN
      PERFORM ringback.refuse(format('options: %s can be given by POST /v1/jobs only', name));
    ELSIF name <> ALL (known) THEN
      PERFORM ringback.refuse(format('options: unknown option %s; the known ones are: %s', left(name, 100),
        array_to_string(known, ', ')));
    END IF;
    given := given || jsonb_build_object(name, options -> name);
  END LOOP;
  PERFORM ringback.check_metadata(given -> 'metadata');
  RETURN given;
END
$$;

-- Which jobs are waited for, each once; NULL: none. All of them are there, in this tenant.
CREATE FUNCTION ringback.option_after(options jsonb, p_tenant uuid) RETURNS uuid[]
LANGUAGE plpgsql STABLE
AS $$
DECLARE
  listed constant jsonb := options -> 'after';
  one record;
  job uuid;
  found_ids uuid[] := '{}';
BEGIN
  IF listed IS NULL THEN
    RETURN NULL;
  ELSIF jsonb_typeof(listed) <> 'array' OR jsonb_array_length(listed) > 1000 THEN
    PERFORM ringback.refuse('options: after must be a list of at most 1000 ids of jobs');
  END IF;
  FOR one IN SELECT l.value, l.value #>> '{}' AS written FROM jsonb_array_elements(listed) AS l LOOP
    job := CASE WHEN jsonb_typeof(one.value) = 'string' THEN ringback.parse_typeid('job', one.written) END;
    IF job IS NULL OR NOT EXISTS (SELECT FROM ringback.jobs j WHERE j.tenant_id = p_tenant AND j.id = job) THEN
      PERFORM ringback.refuse(format('options: after names %s, and there is no such job', left(one.written, 100)));
    ELSIF job <> ALL (found_ids) THEN
      found_ids := found_ids || job;
    END IF;
  END LOOP;
  RETURN nullif(found_ids, '{}');
END
$$;

CREATE FUNCTION ringback.option_after_failure(options jsonb) RETURNS smallint
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
  word constant text := coalesce(ringback.option_string(options, 'after_failure', 10), 'cancel');
BEGIN
  IF word NOT IN ('cancel', 'run') THEN
    PERFORM ringback.refuse('options: after_failure must be one of: cancel, run');
  END IF;
  RETURN CASE word WHEN 'run' THEN 1 ELSE 0 END;
END
$$;

CREATE OR REPLACE FUNCTION ringback.accept_job(p_kind text, p_input text, p_options jsonb, p_tenant text) RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
  tenant constant uuid := ringback.tenant_of(p_tenant);
  job constant uuid := ringback.uuid_v7();
  accepted_at constant timestamptz := date_trunc('milliseconds', clock_timestamp());
  given constant jsonb := ringback.given_options(p_options);
  queue constant text := coalesce(ringback.option_string(given, 'queue', 100), 'default');
  priority constant smallint := coalesce(ringback.option_number(given, 'priority', -100, 100, true), 0);
  timeout_s constant numeric := coalesce(ringback.option_number(given, 'timeout_s', 0.1, 86400, false), 300);
  max_attempts constant integer := coalesce(ringback.option_number(given, 'max_attempts', 1, 1000, true), 5);
  callback_url constant text := ringback.option_string(given, 'callback_url', 2048);
  unique_key constant text := ringback.option_string(given, 'unique_key', 255);
  ordering_key constant text := ringback.option_string(given, 'ordering_key', 255);
  run_at constant timestamptz := ringback.option_run_at(given, accepted_at);
  after_failure constant smallint := ringback.option_after_failure(given);
  after_ids constant uuid[] := ringback.option_after(given, tenant);
  place bigint;
  input text;
  holder uuid;
BEGIN
  PERFORM ringback.check_kind(p_kind);
  input := ringback.strict_json('input', coalesce(p_input, 'null'));
  IF p_kind = 'http' AND jsonb_typeof(input::jsonb -> 'url') IS DISTINCT FROM 'string' THEN
    PERFORM ringback.refuse('input of the kind http must be an object that says at least which url to call');
  ELSIF queue !~ '^[A-Za-z0-9_.-]+$' THEN
    PERFORM ringback.refuse('options: queue must be letters, digits, _, - and . only');
  ELSIF callback_url !~* '^https?://[^[:space:][:cntrl:]]+$' THEN
    PERFORM ringback.refuse('options: callback_url must be an absolute URL, as in https://shop.example/hooks');
  END IF;
  IF unique_key IS NOT NULL THEN
    holder := ringback.claim_unique_key(tenant, unique_key, job);
    IF holder <> job THEN
      RETURN ringback.typeid('job', holder);
    END IF;
  END IF;
  IF ordering_key IS NOT NULL THEN
    place := nextval('ringback.job_places');
  END IF;
  INSERT INTO ringback.jobs (tenant_id, id, kind, queue, priority, run_at, timeout_ms, max_attempts, unique_key, input,
    metadata, callback_url, ordering_key, place, after_ids, after_failure)
  VALUES (tenant, job, p_kind, queue, priority, run_at, (timeout_s * 1000)::integer, max_attempts, unique_key,
    convert_to(input, 'UTF8'), nullif(given -> 'metadata', '{}'), callback_url, ordering_key, place, after_ids,
    CASE WHEN after_ids IS NOT NULL THEN after_failure END);
  IF ordering_key IS NOT NULL OR after_ids IS NOT NULL THEN
    INSERT INTO ringback.job_held (tenant_id, job_id, queue, kind, priority, run_at, ordering_key, place, pending, cancel_on_failure)
    VALUES (tenant, job, queue, p_kind, priority, run_at, ordering_key, place, coalesce(cardinality(after_ids), 0), after_failure = 0);
    INSERT INTO ringback.job_waits (tenant_id, after_id, job_id) SELECT tenant, unnest(after_ids), job;
    INSERT INTO ringback.job_calls (tenant_id, what, job_id, weight) VALUES (tenant, 1, job, coalesce(cardinality(after_ids), 0));
  ELSIF run_at <= clock_timestamp() THEN
    INSERT INTO ringback.job_ready (tenant_id, job_id, queue, kind, priority, ready_at)
    VALUES (tenant, job, queue, p_kind, priority, run_at);
  ELSE
    INSERT INTO ringback.job_scheduled (tenant_id, job_id, queue, kind, priority, due_at)
    VALUES (tenant, job, queue, p_kind, priority, run_at);
  END IF;
  RETURN ringback.typeid('job', job);
END
$$;

-- As before, and what holds jobs back is woken as well.
CREATE OR REPLACE FUNCTION ringback.submit(kind text, input json, options jsonb DEFAULT '{}', tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.wake('jobs held scheduled'); SELECT ringback.accept_job($1, $2::text, $3, $4) $$;

CREATE OR REPLACE FUNCTION ringback.submit(kind text, input jsonb, options jsonb DEFAULT '{}', tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.wake('jobs held scheduled'); SELECT ringback.accept_job($1, $2::text, $3, $4) $$;

CREATE OR REPLACE FUNCTION ringback.submit(kind text, input text, options jsonb DEFAULT '{}', tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.wake('jobs held scheduled'); SELECT ringback.accept_job($1, $2, $3, $4) $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA ringback FROM PUBLIC;
