-- +goose Up

-- The tables by which messages are found. The number of a conversation is the position of its first message in the log;
-- it takes a fifth of the space of the id, and these tables have many rows. The messages of a conversation are divided
-- into blocks of 512 versions.
CREATE TABLE search_conversations (
    conversation_id text COLLATE "C" PRIMARY KEY,
    number          bigint NOT NULL
);

-- The times at which the first and the last message of each block were sent.
CREATE TABLE search_blocks (
    conversation bigint NOT NULL,
    block        integer NOT NULL,
    oldest_at    timestamptz NOT NULL,
    newest_at    timestamptz NOT NULL,
    PRIMARY KEY (conversation, block)
);

-- The messages that are not deleted.
CREATE TABLE search_messages (
    conversation bigint NOT NULL,
    version      bigint NOT NULL,
    message_id   text COLLATE "C" NOT NULL,
    sent_at      timestamptz NOT NULL,
    PRIMARY KEY (conversation, version)
);
CREATE INDEX search_messages_by_id ON search_messages (conversation, message_id);

-- The words of all texts that the messages of a block have had. Bit n is set if the message with the version
-- block * 512 + n has had the word.
CREATE TABLE search_words (
    conversation bigint NOT NULL,
    block        integer NOT NULL,
    word         text COLLATE "C" NOT NULL,
    messages     bit(512) NOT NULL,
    PRIMARY KEY (conversation, block, word)
) WITH (fillfactor = 80); -- rows of frequent words are updated often; an update on the same page leaves the index alone

-- The blocks in which the words occur, so that a search for a rare word in a long conversation does not look the word up
-- in each block. Bit n is set if the block span * 512 + n has the word. The table leaves out the first block of each
-- conversation, because most conversations have no other.
CREATE TABLE search_spans (
    conversation bigint NOT NULL,
    span         integer NOT NULL,
    word         text COLLATE "C" NOT NULL,
    blocks       bit(512) NOT NULL,
    PRIMARY KEY (conversation, span, word)
);

-- +goose Down
DROP TABLE search_spans, search_words, search_messages, search_blocks, search_conversations;
