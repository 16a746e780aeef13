-- What users call from SQL, in transactions of their own: ringback.publish and ringback.submit.
--
-- They are SECURITY DEFINER: who may execute them needs no right on any table, and reads nothing with them. All else in
-- this file is internal and for nobody. What is refused here is refused by the API as well (events::new_event,
-- jobs::new_job); a change there is a new migration here. Nothing here locks a row that a loop of the service has to
-- change, because the caller's transaction may stay open for hours.

-- ---------------------------------------------------------------- ids

-- The microseconds within the millisecond stand in the 12 bits behind the version (RFC 9562, 6.2, method 3), so that
-- what one session makes one after the other sorts in that order.
CREATE FUNCTION ringback.uuid_v7() RETURNS uuid
LANGUAGE sql VOLATILE
AS $$
  SELECT (lpad(to_hex(us / 1000), 12, '0') || '7' || lpad(to_hex(us % 1000 * 4096 / 1000), 3, '0')
    || right(replace(gen_random_uuid()::text, '-', ''), 16))::uuid
  FROM (SELECT floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us) AS clock
$$;
COMMENT ON FUNCTION ringback.uuid_v7 IS 'A fresh UUIDv7.';

CREATE FUNCTION ringback.typeid(prefix text, id uuid) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
  SELECT prefix || '_' || string_agg(
    substr('0123456789abcdefghjkmnpqrstvwxyz', substring(bits FROM 5 * n + 1 FOR 5)::bit(5)::integer + 1, 1), '' ORDER BY n)
  FROM (SELECT B'00' || ('x' || replace(id::text, '-', ''))::bit(128) AS bits) AS number, generate_series(0, 25) AS n
$$;
COMMENT ON FUNCTION ringback.typeid IS 'An id in its written form: a prefix and the 128 bits in 26 letters of base32.';

-- NULL for what is none.
CREATE FUNCTION ringback.parse_typeid(prefix text, written text) RETURNS uuid
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
  bits text;
BEGIN
  IF written !~ ('^' || prefix || '_[0-7][0-9a-hjkmnp-tv-z]{25}$') THEN
    RETURN NULL;
  END IF;
  SELECT right(string_agg((strpos('0123456789abcdefghjkmnpqrstvwxyz', letter) - 1)::bit(5)::text, '' ORDER BY n), 128)
  INTO bits
  FROM unnest(string_to_array(right(written, 26), NULL)) WITH ORDINALITY AS letters(letter, n);
  RETURN (SELECT string_agg(to_hex(substr(bits, 4 * n + 1, 4)::bit(4)::integer), '' ORDER BY n)
    FROM generate_series(0, 31) AS n)::uuid;
END
$$;

-- ---------------------------------------------------------------- checks

CREATE FUNCTION ringback.refuse(message text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
  RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'ringback: ' || message;
END
$$;

-- By its id (ten_…, or as a UUID); NULL is the first one.
CREATE FUNCTION ringback.tenant_of(tenant text) RETURNS uuid
LANGUAGE plpgsql STABLE
AS $$
DECLARE
  wanted uuid;
  found_id uuid;
BEGIN
  IF tenant IS NULL THEN
    SELECT t.id INTO found_id FROM ringback.tenants t WHERE t.is_first;
  ELSE
    wanted := ringback.parse_typeid('ten', tenant);
    IF wanted IS NULL AND tenant ~* '^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$' THEN
      wanted := tenant::uuid;
    END IF;
    SELECT t.id INTO found_id FROM ringback.tenants t WHERE t.id = wanted;
  END IF;
  IF found_id IS NULL THEN
    PERFORM ringback.refuse(coalesce(format('there is no tenant %s', left(tenant, 100)),
      'there is no tenant yet; start the service once'));
  END IF;
  RETURN found_id;
END
$$;

CREATE FUNCTION ringback.check_event_type(type text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
  IF type IS NULL THEN
    PERFORM ringback.refuse('type is missing; name the topic, as in order.paid');
  ELSIF octet_length(type) NOT BETWEEN 1 AND 128 THEN
    PERFORM ringback.refuse('type must be 1 to 128 bytes long');
  ELSIF type !~ '^[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*$' THEN
    PERFORM ringback.refuse('type must be names of letters, digits, _ and -, joined by dots, as in order.paid');
  ELSIF cardinality(string_to_array(type, '.')) > 16 THEN
    PERFORM ringback.refuse('type must have at most 16 names between its dots');
  ELSIF type ~ '^(job|endpoint|delivery|ringback)[.]' THEN
    PERFORM ringback.refuse('types that begin with job., endpoint., delivery. or ringback. are Ringback''s own, so that '
      'receivers can trust them; choose another name');
  END IF;
END
$$;

CREATE FUNCTION ringback.check_key(name text, key text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
  IF key IS NOT NULL AND octet_length(key) NOT BETWEEN 1 AND 255 THEN
    PERFORM ringback.refuse(name || ' must be 1 to 255 bytes long');
  END IF;
END
$$;

CREATE FUNCTION ringback.check_metadata(metadata jsonb) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
  IF metadata IS NULL THEN
    RETURN;
  END IF;
  IF jsonb_typeof(metadata) <> 'object' THEN
    PERFORM ringback.refuse('metadata must be an object of strings');
  END IF;
  IF (SELECT count(*) FROM jsonb_object_keys(metadata)) > 50 THEN
    PERFORM ringback.refuse('metadata must have at most 50 members');
  END IF;
  IF EXISTS (SELECT FROM jsonb_each(metadata) AS m WHERE jsonb_typeof(m.value) <> 'string'
      OR octet_length(m.value #>> '{}') > 1024 OR octet_length(m.key) NOT BETWEEN 1 AND 64) THEN
    PERFORM ringback.refuse('metadata must be strings of at most 1,024 bytes under names of 1 to 64 bytes');
  END IF;
END
$$;

-- The JSON text without the space around it, if every reader understands it alike (json.rs has the reasons): at most
-- 256 KiB, at most 64 deep, no name twice in an object, no number beyond a double. The cast to jsonb refuses what is no
-- JSON at all, a lone surrogate and \u0000. Every step is linear.
CREATE FUNCTION ringback.strict_json(name text, json_text text) RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
  trimmed text := btrim(json_text, E' \t\r\n');
  strings constant text := E'"([^"\\\\]|\\\\.)*"';
  parsed jsonb;
  written text;
  kept text;
BEGIN
  IF octet_length(convert_to(trimmed, 'UTF8')) > 262144 THEN
    PERFORM ringback.refuse(name || ' may have 262144 bytes at most');
  END IF;
  parsed := trimmed::jsonb;
  IF jsonb_path_exists(parsed, 'strict $.**{64} ? (@.type() == "object" || @.type() == "array")') THEN
    PERFORM ringback.refuse(name || ' may be 64 levels deep at most');
  END IF;
  IF jsonb_path_exists(parsed, 'strict $.** ? (@.type() == "number" && @.abs() >= 1.7976931348623159e308)') THEN
    PERFORM ringback.refuse(name || ' holds a number beyond the range of a double');
  END IF;
  -- jsonb keeps one of two members with the same name, so a name that comes twice shows in the number of colons.
  written := regexp_replace(trimmed, strings, '', 'g');
  kept := regexp_replace(parsed::text, strings, '', 'g');
  IF length(written) - length(replace(written, ':', '')) <> length(kept) - length(replace(kept, ':', '')) THEN
    PERFORM ringback.refuse(name || ' has an object in which a name comes twice');
  END IF;
  RETURN trimmed;
END
$$;

-- ---------------------------------------------------------------- publish

-- Whose event the key stands for: the first one's within 24 hours.
CREATE FUNCTION ringback.claim_dedup_key(p_tenant uuid, p_key text, p_event uuid) RETURNS uuid
LANGUAGE plpgsql
AS $$
DECLARE
  held record;
BEGIN
  FOR i IN 1..20 LOOP
    SELECT d.event_id, d.created_at INTO held FROM ringback.event_dedup d WHERE d.tenant_id = p_tenant AND d.key = p_key;
    IF NOT FOUND THEN
      INSERT INTO ringback.event_dedup (tenant_id, key, event_id, created_at)
      VALUES (p_tenant, p_key, p_event, clock_timestamp()) ON CONFLICT DO NOTHING;
    ELSIF held.created_at >= clock_timestamp() - interval '24 hours' THEN
      RETURN held.event_id;
    ELSE
      UPDATE ringback.event_dedup d SET event_id = p_event, created_at = clock_timestamp()
      WHERE d.tenant_id = p_tenant AND d.key = p_key AND d.created_at = held.created_at;
    END IF;
    IF FOUND THEN
      RETURN p_event;
    END IF;
  END LOOP;
  RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE = 'ringback: too many publish with this dedup_key at once';
END
$$;

CREATE FUNCTION ringback.append_event(
  p_type text, p_data text, p_ordering_key text, p_dedup_key text, p_metadata jsonb, p_tenant text) RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
  tenant constant uuid := ringback.tenant_of(p_tenant);
  event constant uuid := ringback.uuid_v7();
  holder uuid;
  strict_data text;
BEGIN
  PERFORM ringback.check_event_type(p_type);
  IF p_data IS NULL THEN
    PERFORM ringback.refuse('data is missing; any JSON value will do, ''null'' included');
  END IF;
  strict_data := ringback.strict_json('data', p_data);
  PERFORM ringback.check_key('ordering_key', p_ordering_key);
  PERFORM ringback.check_key('dedup_key', p_dedup_key);
  PERFORM ringback.check_metadata(p_metadata);
  IF p_dedup_key IS NOT NULL THEN
    holder := ringback.claim_dedup_key(tenant, p_dedup_key, event);
    IF holder <> event THEN
      RETURN ringback.typeid('evt', holder);
    END IF;
  END IF;
  INSERT INTO ringback.events (tenant_id, id, type, data, metadata, ordering_key)
  VALUES (tenant, event, p_type, convert_to(strict_data, 'UTF8'), nullif(p_metadata, '{}'), p_ordering_key);
  INSERT INTO ringback.event_inbox (tenant_id, event_id, type) VALUES (tenant, event, p_type);
  RETURN ringback.typeid('evt', event);
END
$$;

-- Three of each, for data that comes as json (its text stays as it is), as jsonb (it was parsed already), or as text: a
-- bare literal is taken as that.
CREATE FUNCTION ringback.publish(type text, data json, ordering_key text DEFAULT NULL, dedup_key text DEFAULT NULL,
  metadata jsonb DEFAULT NULL, tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.append_event($1, $2::text, $3, $4, $5, $6) $$;

CREATE FUNCTION ringback.publish(type text, data jsonb, ordering_key text DEFAULT NULL, dedup_key text DEFAULT NULL,
  metadata jsonb DEFAULT NULL, tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.append_event($1, $2::text, $3, $4, $5, $6) $$;

CREATE FUNCTION ringback.publish(type text, data text, ordering_key text DEFAULT NULL, dedup_key text DEFAULT NULL,
  metadata jsonb DEFAULT NULL, tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.append_event($1, $2, $3, $4, $5, $6) $$;

COMMENT ON FUNCTION ringback.publish(text, json, text, text, jsonb, text) IS
  'Publishes an event if and when this transaction commits. Returns its id, or with a dedup_key that was seen within 24 hours the first event''s.';
COMMENT ON FUNCTION ringback.publish(text, jsonb, text, text, jsonb, text) IS
  'Publishes an event if and when this transaction commits. Returns its id, or with a dedup_key that was seen within 24 hours the first event''s.';
COMMENT ON FUNCTION ringback.publish(text, text, text, text, jsonb, text) IS
  'Publishes an event if and when this transaction commits. Returns its id, or with a dedup_key that was seen within 24 hours the first event''s.';

-- ---------------------------------------------------------------- submit

-- What is refused because this version cannot do it yet.
CREATE FUNCTION ringback.check_kind(kind text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
  IF kind IS NULL THEN
    PERFORM ringback.refuse('kind is missing; say what is to be done, as in http');
  ELSIF octet_length(kind) NOT BETWEEN 1 AND 100 OR kind !~ '^[A-Za-z0-9_.-]+$' THEN
    PERFORM ringback.refuse('kind must be 1 to 100 letters, digits, _, - and . only');
  ELSIF kind IN ('command', 'sql', 'email') THEN
    PERFORM ringback.refuse(format('the kind %s is not available yet in this version', kind));
  END IF;
END
$$;

-- An option's string; NULL where it is not given.
CREATE FUNCTION ringback.option_string(options jsonb, name text, max_bytes integer) RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
  value constant jsonb := options -> name;
BEGIN
  IF value IS NULL THEN
    RETURN NULL;
  END IF;
  IF jsonb_typeof(value) <> 'string' OR octet_length(value #>> '{}') NOT BETWEEN 1 AND max_bytes THEN
    PERFORM ringback.refuse(format('options: %s must be a string of 1 to %s bytes', name, max_bytes));
  END IF;
  RETURN value #>> '{}';
END
$$;

-- An option's number within its range; NULL where it is not given.
CREATE FUNCTION ringback.option_number(options jsonb, name text, low numeric, high numeric, whole boolean) RETURNS numeric
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
  value constant jsonb := options -> name;
BEGIN
  IF value IS NULL THEN
    RETURN NULL;
  END IF;
  IF jsonb_typeof(value) = 'number' AND (value #>> '{}')::numeric BETWEEN low AND high
     AND NOT (whole AND (value #>> '{}')::numeric <> trunc((value #>> '{}')::numeric)) THEN
    RETURN (value #>> '{}')::numeric;
  END IF;
  PERFORM ringback.refuse(format('options: %s must be a %s from %s to %s', name,
    CASE WHEN whole THEN 'whole number' ELSE 'number' END, low, high));
END
$$;

-- When the job may run, at the earliest. A time in the past means now.
CREATE FUNCTION ringback.option_run_at(options jsonb, now timestamptz) RETURNS timestamptz
LANGUAGE plpgsql STABLE
AS $$
DECLARE
  written constant text := ringback.option_string(options, 'run_at', 64);
  delay_s constant numeric := ringback.option_number(options, 'delay_s', 0, 315576000, false);
  run_at timestamptz;
BEGIN
  IF written IS NOT NULL AND delay_s IS NOT NULL THEN
    PERFORM ringback.refuse('options: at most one of run_at and delay_s may be given');
  ELSIF delay_s IS NOT NULL THEN
    RETURN now + delay_s::float8 * interval '1 s';
  ELSIF written IS NULL THEN
    RETURN now;
  END IF;
  IF written !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$' THEN
    PERFORM ringback.refuse('options: run_at must be an RFC 3339 time, as in 2030-01-31T12:00:00Z');
  END IF;
  run_at := written::timestamptz;
  IF run_at > now + 315576000 * interval '1 s' THEN
    PERFORM ringback.refuse('options: run_at must be within ten years');
  END IF;
  RETURN greatest(run_at, now);
END
$$;

-- The options that are given, null being none; refuses names that nobody knows.
CREATE FUNCTION ringback.given_options(options jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
  known constant text[] := ARRAY['queue', 'priority', 'run_at', 'delay_s', 'max_attempts', 'timeout_s', 'callback_url',
    'unique_key', 'metadata'];
  name text;
  given jsonb := '{}';
BEGIN
  IF options IS NULL THEN
    RETURN given;
  ELSIF jsonb_typeof(options) <> 'object' THEN
    PERFORM ringback.refuse('options must be an object');
  END IF;
  FOR name IN SELECT o.key FROM jsonb_each(options) AS o WHERE jsonb_typeof(o.value) <> 'null' ORDER BY o.key LOOP
    IF name IN ('ordering_key', 'after', 'after_failure') THEN
      PERFORM ringback.refuse(format('options: %s is not available yet in this version', name));
    ELSIF name IN ('callback', 'backoff') THEN
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

-- Which job has the key while it is not finished. A key that is held is not locked: its holder must be able to end.
CREATE FUNCTION ringback.claim_unique_key(p_tenant uuid, p_key text, p_job uuid) RETURNS uuid
LANGUAGE plpgsql
AS $$
DECLARE
  holder uuid;
BEGIN
  FOR i IN 1..20 LOOP
    INSERT INTO ringback.job_unique_keys (tenant_id, key, job_id) VALUES (p_tenant, p_key, p_job) ON CONFLICT DO NOTHING;
    IF FOUND THEN
      RETURN p_job;
    END IF;
    SELECT u.job_id INTO holder FROM ringback.job_unique_keys u WHERE u.tenant_id = p_tenant AND u.key = p_key;
    IF FOUND THEN
      RETURN holder;
    END IF;
  END LOOP;
  RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE = 'ringback: too many submit with this unique_key at once';
END
$$;

CREATE FUNCTION ringback.accept_job(p_kind text, p_input text, p_options jsonb, p_tenant text) RETURNS text
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
  run_at constant timestamptz := ringback.option_run_at(given, accepted_at);
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
  INSERT INTO ringback.jobs (tenant_id, id, kind, queue, priority, run_at, timeout_ms, max_attempts, unique_key, input,
    metadata, callback_url)
  VALUES (tenant, job, p_kind, queue, priority, run_at, (timeout_s * 1000)::integer, max_attempts, unique_key,
    convert_to(input, 'UTF8'), nullif(given -> 'metadata', '{}'), callback_url);
  IF run_at <= clock_timestamp() THEN
    INSERT INTO ringback.job_ready (tenant_id, job_id, queue, kind, priority, ready_at)
    VALUES (tenant, job, queue, p_kind, priority, run_at);
  ELSE
    INSERT INTO ringback.job_scheduled (tenant_id, job_id, queue, kind, priority, due_at)
    VALUES (tenant, job, queue, p_kind, priority, run_at);
  END IF;
  RETURN ringback.typeid('job', job);
END
$$;

CREATE FUNCTION ringback.submit(kind text, input json, options jsonb DEFAULT '{}', tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.accept_job($1, $2::text, $3, $4) $$;

CREATE FUNCTION ringback.submit(kind text, input jsonb, options jsonb DEFAULT '{}', tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.accept_job($1, $2::text, $3, $4) $$;

CREATE FUNCTION ringback.submit(kind text, input text, options jsonb DEFAULT '{}', tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.accept_job($1, $2, $3, $4) $$;

COMMENT ON FUNCTION ringback.submit(text, json, jsonb, text) IS
  'Submits a job if and when this transaction commits. Returns its id, or that of the unfinished job that holds the unique_key.';
COMMENT ON FUNCTION ringback.submit(text, jsonb, jsonb, text) IS
  'Submits a job if and when this transaction commits. Returns its id, or that of the unfinished job that holds the unique_key.';
COMMENT ON FUNCTION ringback.submit(text, text, jsonb, text) IS
  'Submits a job if and when this transaction commits. Returns its id, or that of the unfinished job that holds the unique_key.';

-- ---------------------------------------------------------------- for whom

-- PostgreSQL lets everybody execute a new function. Here nobody may who was not granted it; docs/sql.md shows how.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA ringback FROM PUBLIC;
