-- Which nodes send deliveries: the lanes are shared among them.
ALTER TABLE ringback.nodes ADD COLUMN dispatcher boolean NOT NULL DEFAULT false;
