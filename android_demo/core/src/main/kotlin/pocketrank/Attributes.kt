package pocketrank

import java.nio.ByteBuffer
import java.util.Locale
import java.util.function.IntPredicate

/**
 * What a bundle says of its items beside their vectors, so that a request can ask for some: `item_attributes.json`.
 *
 * A bundle without the file has none. Values are text: of an item one, several, or none where nothing is known.
 */
class Attributes private constructor(private val columns: Map<*, *>) {
    /** What items can be asked for by. */
    val names: List<String> get() = columns.keys.map { it as String }

    /**
     * Which items have, of each attribute named, one of the values; by vocabulary row.
     *
     * @throws BadInput an attribute that the bundle does not have.
     */
    internal fun wanted(where: Map<String, Collection<String>>): IntPredicate {
        var found = IntPredicate { true }
        for ((name, values) in where) {
            val column = columns[name] as List<*>? ?: throw BadInput(
                "rank: where names ${shown(name)}, which this bundle does not say of its items " +
                    "(${if (columns.isEmpty()) "it has none" else "it has ${oneLine(names.joinToString())}"}); " +
                    "name it in [items] attributes and export again",
            )
            found = found.and { row -> has(column[row], values) }
        }
        return found
    }

    private fun has(value: Any?, wanted: Collection<Any?>): Boolean =
        if (value is List<*>) value.any { it in wanted } else value != null && value in wanted

    internal companion object {
        const val FILE = "item_attributes.json"
        const val BYTES_AN_ITEM = 1024L // of the file, at most
        val NONE = Attributes(emptyMap<String, Any?>())

        /**
         * Those of a file, as its content was hashed.
         *
         * @param items I, how many values each has. @param where the file's path, for messages.
         * @throws BadBundle it is not an object of lists of as many values as there are items.
         */
        fun read(content: ByteBuffer, items: Int, where: String): Attributes {
            val found = try {
                Json.read(content, content.remaining().toLong(), deepest = 3)
            } catch (error: BadJson) {
                throw BadBundle("$where: not JSON (${oneLine(error.message)}); export the bundle again")
            }
            if (found !is Map<*, *> || !found.values.all { it is List<*> && it.size == items && it.all(::isValue) }) {
                val count = "%,d".format(Locale.ROOT, items)
                throw BadBundle("$where: not lists of text of $count items; export the bundle again")
            }
            return Attributes(found)
        }

        private fun isValue(value: Any?): Boolean =
            value == null || value is String || (value is List<*> && value.all { it is String })
    }
}
