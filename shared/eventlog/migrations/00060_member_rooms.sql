-- +goose Up

-- The number of rooms of a kind ("conversation") that a user is in. The number is compared with a bound under the log's
-- lock, where counting thousands of rows would block all other writers. Triggers update the number when memberships
-- change, so that it is right even if an earlier release changes them.
CREATE TABLE member_rooms (
    member text COLLATE "C" NOT NULL,
    kind   text COLLATE "C" NOT NULL,
    rooms  integer NOT NULL,
    PRIMARY KEY (member, kind)
);

-- +goose StatementBegin
CREATE FUNCTION rooms_are_opened() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO member_rooms AS m (member, kind, rooms)
    SELECT member, split_part(room, ':', 1), count(*) FROM opened WHERE closed_position IS NULL GROUP BY 1, 2
    ORDER BY 1, 2
    ON CONFLICT (member, kind) DO UPDATE SET rooms = m.rooms + excluded.rooms;
    RETURN NULL;
END $$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION rooms_are_closed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO member_rooms AS m (member, kind, rooms)
    SELECT member, split_part(room, ':', 1), sum(n) FROM (
        SELECT member, room, -1 AS n FROM was WHERE closed_position IS NULL
        UNION ALL SELECT member, room, 1 FROM is_now WHERE closed_position IS NULL) c
    GROUP BY 1, 2 HAVING sum(n) <> 0 ORDER BY 1, 2
    ON CONFLICT (member, kind) DO UPDATE SET rooms = m.rooms + excluded.rooms;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER rooms_are_opened AFTER INSERT ON memberships REFERENCING NEW TABLE AS opened
    FOR EACH STATEMENT EXECUTE FUNCTION rooms_are_opened();
CREATE TRIGGER rooms_are_closed AFTER UPDATE ON memberships REFERENCING OLD TABLE AS was NEW TABLE AS is_now
    FOR EACH STATEMENT EXECUTE FUNCTION rooms_are_closed();

-- The creation of the triggers has locked the table memberships until this migration is committed. So no membership
-- changes between this count and the first call of a trigger.
INSERT INTO member_rooms (member, kind, rooms)
SELECT member, split_part(room, ':', 1), count(*) FROM memberships WHERE closed_position IS NULL GROUP BY 1, 2;

-- +goose Down
DROP TRIGGER rooms_are_opened ON memberships;
DROP TRIGGER rooms_are_closed ON memberships;
DROP FUNCTION rooms_are_opened, rooms_are_closed;
DROP TABLE member_rooms;
