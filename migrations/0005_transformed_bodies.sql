-- The data that a transform made, kept with the delivery: the same bytes on every try, whatever becomes of the
-- transform. NULL: the event's own.
ALTER TABLE ringback.deliveries ADD COLUMN data bytea;
