package store

// The statements are exported for tests of their query plans.
var SQLConversations, SQLMembers, SQLOldest, SQLNewest = sqlConversations, sqlMembers, sqlOldest, sqlNewest

var SQLPins = sqlPins

const SQLEdits = sqlEdits

var SQLUnread, SQLMarkers, SQLRaise, SQLRestore = sqlUnread, sqlMarkers, sqlRaise, sqlRestore

const MaxSmall = maxSmall

var SQLReactions, SQLReactionsOf = sqlReactions, sqlReactionsOf
var SQLJoined, SQLBlocks, SQLMatch, SQLSent, SQLFound = sqlJoined, sqlBlocks, sqlMatch, sqlSent, sqlFound
