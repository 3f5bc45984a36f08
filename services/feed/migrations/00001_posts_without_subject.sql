-- +goose Up

-- An earlier release stored feed.post_created with the post's id as its subject. Commands for posts have no subject, so
-- their decisions do not load events with a subject, and such a post would seem not to exist.
-- +goose StatementBegin
DO $$
BEGIN
    IF to_regclass('events') IS NOT NULL THEN
        UPDATE events SET subject = '' WHERE type = 'feed.post_created' AND subject <> '';
    END IF;
END $$;
-- +goose StatementEnd

-- +goose Down
