package store

// The statements, for tests of their plans.
var SQLConversations, SQLMembers, SQLOldest, SQLNewest = sqlConversations, sqlMembers, sqlOldest, sqlNewest

const MaxSmall = maxSmall
