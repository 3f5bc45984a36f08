-- +goose Up

-- The path of the field to which a refusal refers, such as "user_id"; empty: the refusal refers to no field.
ALTER TABLE outcomes ADD COLUMN field text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE outcomes DROP COLUMN field;
