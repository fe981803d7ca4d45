package pocketrank

/** An item as the log and the app know it: a text or an integer, and never equal across the two. */
sealed class ItemId : Comparable<ItemId> {
    data class Text(val text: String) : ItemId() {
        override fun toString() = text
    }

    data class Number(val number: Long) : ItemId() {
        override fun toString() = number.toString()
    }

    /** The order in which items of equal score rank: integers by value, then texts by their code points. */
    override fun compareTo(other: ItemId): Int = when (this) {
        is Number -> if (other is Number) number.compareTo(other.number) else -1
        is Text -> if (other is Text) byCodePoint(text, other.text) else 1
    }

    companion object {
        fun of(text: String): ItemId = Text(text)

        fun of(number: Long): ItemId = Number(number)

        /** Of a value in a JSON text; null where it is neither text nor integer. */
        internal fun ofJson(value: Any?): ItemId? = when (value) {
            is String -> Text(value)
            is Long -> Number(value)
            else -> null
        }

        /** As [String.compareTo], but that a pair of surrogates comes after every other letter. */
        private fun byCodePoint(one: String, other: String): Int {
            for (place in 0 until minOf(one.length, other.length)) {
                val a = one[place]
                val b = other[place]
                if (a != b) return if (a.isSurrogate() == b.isSurrogate()) a.compareTo(b) else if (a.isSurrogate()) 1 else -1
            }
            return one.length.compareTo(other.length)
        }
    }
}
