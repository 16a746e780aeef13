-- The kinds command, sql and email are there: `ringback.submit` takes them like any other. What their input asks for is judged
-- by the process that runs the job, whose file names commands, sources and mail server.
CREATE OR REPLACE FUNCTION ringback.check_kind(kind text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
  IF kind IS NULL THEN
    PERFORM ringback.refuse('kind is missing; say what is to be done, as in http');
  ELSIF octet_length(kind) NOT BETWEEN 1 AND 100 OR kind !~ '^[A-Za-z0-9_.-]+$' THEN
    PERFORM ringback.refuse('kind must be 1 to 100 letters, digits, _, - and . only');
  END IF;
END
$$;
